// Three nodes of this machine, each a process of its own, that the test starts and kills.

import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from './until.js';

const PORTS = { clients: 7001, peers: 7101, http: 7201 };
/** Addresses of this run alone: another one at the same time has others. */
const NETWORK = `127.${64 + ((process.pid >> 8) % 128)}.${process.pid % 256}`;

const living = new Set();
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

export class Nodes {
  /** `secured`: who has no token may do nothing. */
  constructor(quorate, secured) {
    this.quorate = quorate;
    this.place = mkdtempSync(join(tmpdir(), 'quorate-console-'));
    process.on('exit', () => rmSync(this.place, { recursive: true, force: true }));
    this.all = [1, 2, 3].map((id) => ({ id, ip: `${NETWORK}.${id}`, url: `http://${NETWORK}.${id}:${PORTS.http}`, child: null }));
    this.tokens = secured ? this.access() : {};
  }

  /** Makes the access file; gives its tokens. */
  access() {
    const rights = { admin: ['admin'], reader: ['read', '--namespace', '*'], operator: ['operator', '--namespace', 'default', '--prefix', 'shop'] };
    const tokens = {};
    let file = '';
    for (const [id, [role, ...of]] of Object.entries(rights)) {
      const out = join(this.place, `${id}.token`);
      file += execFileSync(this.quorate, ['token', 'new', '--id', id, '--role', role, ...of, '--out', out], { encoding: 'utf8' });
      tokens[id] = readFileSync(out, 'utf8').trim();
    }
    writeFileSync(join(this.place, 'access.toml'), file, { mode: 0o600 });
    return tokens;
  }

  /** Writes another access file, which nodes read when they are told to; gives the one before. */
  rewrite(change) {
    const place = join(this.place, 'access.toml');
    const before = readFileSync(place, 'utf8');
    writeFileSync(place, change(before), { mode: 0o600 });
    for (const { child } of this.all) child.kill('SIGHUP');
    return before;
  }

  data(node) {
    return join(this.place, `node-${node.id}`);
  }

  start(node) {
    const bootstrap = this.all.map(({ id, ip }) => `${id}=${ip}:${PORTS.peers}`).join(',');
    const args = ['serve', '--id', node.id, '--data-dir', this.data(node), '--listen', `${node.ip}:${PORTS.clients}`,
      '--peer-listen', `${node.ip}:${PORTS.peers}`, '--http-listen', `${node.ip}:${PORTS.http}`, '--bootstrap', bootstrap,
      '--health-checks-allow', '127.0.0.0/8'];
    if (this.tokens.admin) args.push('--access', join(this.place, 'access.toml'));
    const log = openSync(join(this.place, `node-${node.id}.log`), 'a');
    const child = spawn(this.quorate, args.map(String), { stdio: ['ignore', log, log] });
    living.add(child);
    child.ended = new Promise((resolve) => child.once('exit', resolve));
    child.ended.then(() => living.delete(child));
    node.child = child;
  }

  /** Starts those that do not run, and waits until each may be asked. */
  async run() {
    const gone = this.all.filter((node) => !living.has(node.child));
    for (const node of gone) this.start(node);
    for (const node of gone) {
      await until(() => `node ${node.id} is ready; its log ends so: ${this.log(node)}`, async () => (await fetch(`${node.url}/readyz`)).ok, 60_000);
    }
  }

  log(node) {
    return readFileSync(join(this.place, `node-${node.id}.log`), 'utf8').slice(-1000);
  }

  /** As `kill -9` does. */
  async kill(...nodes) {
    for (const node of nodes) node.child.kill('SIGKILL');
    for (const node of nodes) await node.child.ended;
  }

  /** The same addresses, another cluster: nobody has the data of the one before. */
  async refound() {
    await this.kill(...this.all);
    for (const node of this.all) rmSync(this.data(node), { recursive: true });
    await this.run();
  }
}
