// Walks through every view and action of the console in Chromium, at three nodes that it starts, fills and kills. `.ci/console`
// runs it.
//
//   node walk.js --quorate FILE --chromium FILE [--secured] [--shots DIR] [--only STEP,...]
//
// Ends with 1 where something is not as it should be: a dialog, a report of the content security policy, an error in the
// console, a serious fault of accessibility, frames that are not smooth, a view that is not what the registry has.

import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { actions, pausing, rights } from './acting.js';
import { Api, MARKUP, PAYLOADS } from './api.js';
import { alone, dying, elsewhere, refounded } from './dying.js';
import { foreign } from './foreign.js';
import { headers, keyboard, modules, payloads, pictures, scrolling, views } from './looking.js';
import { attention, figures, past } from './telling.js';
import { Nodes } from './nodes.js';
import { VIEWS, fault, faults, is, login, opened } from './page.js';
import { proxy } from './proxy.js';
import { stream } from './streams.js';
import { until } from './until.js';

const { values } = parseArgs({ options: {
  quorate: { type: 'string' },
  chromium: { type: 'string', default: '/usr/bin/chromium' },
  secured: { type: 'boolean', default: false },
  shots: { type: 'string', default: '' },
  crowd: { type: 'string', default: '10000' },
  only: { type: 'string', default: '' },
} });
/** Longer than the whole takes on two busy cores. */
const LONGEST_MS = 900_000;
const shots = values.shots && join(values.shots, values.secured ? 'secured' : 'open');

/** In their order: those that kill nodes come last, and of them the one after which nothing is left. */
const STEPS = { headers, modules, views, figures, attention, past, payloads, keyboard, actions, pausing, rights, foreign, scrolling, pictures, dying, elsewhere, alone, stream, refounded };

const only = values.only.split(',').filter(Boolean);
const unknown = only.filter((name) => !Object.hasOwn(STEPS, name));
if (unknown.length) {
  console.log(`--only: there is no step ${unknown.join(', ')}; there are ${Object.keys(STEPS).join(', ')}`);
  process.exit(2);
}

async function fill(api, crowd) {
  // A machine with much else to do may have a moment without a leader.
  const put = (...of) => until(() => `${of[0]}/${of[1]} is registered`, () => api.must(api.put(...of)));
  await put('ledger', 'ledger-1', { zone: 'eu-1a', version: '1.0.0' });
  await put('payments', 'payments-1', { zone: 'eu-1a', requires: ['ledger', 'shop'] });
  for (let at = 1; at <= 5; at += 1) {
    const metadata = { team: 'shop', commit: `00${at}` };
    await put('shop', `shop-${at}`, { zone: `eu-1${'abc'[at % 3]}`, version: '2.1.0', requires: ['payments', 'not-there'], tags: ['canary'], metadata });
  }
  let refused = 0;
  for (const [at, payload] of PAYLOADS.entries()) {
    const { status } = await api.put('payload', `payload-${at}`, payload);
    if (status >= 500) fault(`payload ${at}: HTTP ${status}`);
    if (status >= 300) refused += 1;
  }
  const reason = await api.call('PUT', `${api.at('payload', 'payload-0')}/override`, { status: 'DRAINING', reason: MARKUP });
  is(reason.status < 300, `an override with markup as its reason: HTTP ${reason.status}`);
  console.log(`payloads: ${PAYLOADS.length - refused} taken, ${refused} refused by the registry`);
  const began = Date.now();
  const spec = (at) => ({ zone: `eu-1${'abc'[at % 3]}`, version: `3.${at % 4}.0`, metadata: { row: String(at) }, tags: at % 9 ? [] : ['canary'] });
  await Api.many(crowd, (at) => put('crowd', `crowd-${String(at).padStart(5, '0')}`, spec(at)));
  console.log(`${crowd} instances of crowd registered in ${Date.now() - began} ms`);
}

async function walk() {
  const nodes = new Nodes(resolve(values.quorate), values.secured);
  const { tokens } = nodes;
  await nodes.run();
  const another = (node) => new Api(node, tokens.admin);
  const [api, crowd] = [another(nodes.all[0]), Number(values.crowd)];
  await fill(api, crowd);
  const front = await proxy();
  front.to = nodes.all;
  const { url } = front;
  // Names that a page of somebody else may have, and one that a node may have.
  const rules = `MAP foreign.test 127.0.0.1, MAP node.test ${nodes.all[0].ip}`;
  const browser = await chromium.launch({ executablePath: values.chromium, args: ['--no-sandbox', `--host-resolver-rules=${rules}`] });
  try {
    const page = await opened(browser);
    await login(page, url, tokens.admin);
    const shot = async (of, name) => shots && of.screenshot({ path: join(shots, `${name}.png`) });
    const told = (view) => (view === 'me' && !values.secured ? 'checks no rights' : VIEWS[view]);
    const all = { browser, page, url, front, nodes, tokens, api, another, crowd, shot, told };
    for (const [name, step] of Object.entries(STEPS)) {
      if (only.length && !only.includes(name)) continue;
      const began = Date.now();
      console.log(name);
      await step(all).catch((error) => fault(`${name}: ${error.stack}`));
      console.log(`  ${Date.now() - began} ms`);
    }
  } finally {
    await browser.close();
    front.close();
  }
}

if (shots) mkdirSync(shots, { recursive: true });
setTimeout(() => {
  console.log(`not done within ${LONGEST_MS / 1000} s`);
  process.exit(1);
}, LONGEST_MS);
await walk().catch((error) => fault(error.stack));
console.log(faults.length ? `${faults.length} faults` : 'all as it should be');
process.exit(faults.length ? 1 : 0);
