// The console while nodes are killed: it says how old what it shows is, goes on at another node, and loses nothing.

import { actions } from './acting.js';
import { views } from './looking.js';
import { clean, go, is, login, opened, place, rows, shows, text, turn } from './page.js';
import { until } from './until.js';

/** The id of the node that leads, as another one says. */
const leader = (api) => until(() => 'a leader', async () => {
  const { status, body } = await api.call('GET', '/api/v1/status');
  return status === 200 && body.header.leader_id !== '0' && body.header.leader_id;
});

const stale = (page) => page.waitForFunction(() => /As of \d+ s ago, not live/.test(document.querySelector('#stale:not([hidden])')?.textContent), null, { timeout: 10_000 });
const live = (page) => page.waitForFunction(() => document.querySelector('#stale').hidden && document.querySelector('#foot.on'), null, { timeout: 30_000 });

/** All nodes have one address: the page goes on at another one by itself. */
export async function dying(walk) {
  const { page, url, nodes, front } = walk;
  await go(page, url, 'log');
  const led = await leader(walk.api);
  // First the one that leads, then one that follows.
  for (const [at, isNext] of [[0, (it) => String(it.id) === led], [1, (it) => String(it.id) !== led]]) {
    const node = nodes.all.find(isNext);
    await died(walk, node, nodes.all.filter((it) => it !== node), `meanwhile-${at}`);
    await nodes.run();
  }
  front.to = nodes.all;
}

async function died(walk, node, others, id) {
  const { page, front, nodes, shot, another, url } = walk;
  page.allowed = ['ERR_', 'Failed to load'];
  front.to = [node];
  await again(page, front);
  await page.waitForFunction((it) => document.querySelector('#foot.on')?.textContent.includes(`node ${it}`), node.id, { timeout: 30_000 });
  await page.fill('.search', id);
  const killed = Date.now();
  await nodes.kill(node);
  await stale(page);
  const told = await text(page, '#foot');
  is(told.startsWith('Not live'), `with its node dead, the page says ${told}`);
  await shot(page, `stale-${id}`);
  const beside = another(others[0]);
  await leader(beside);
  for (const zone of ['eu-1a', 'eu-1b']) await beside.must(beside.put('meanwhile', id, { zone }));
  const went = Date.now();
  front.to = [node, ...others];
  await live(page);
  const took = Date.now() - went;
  await shows(page, 'zone eu-1a → eu-1b', '.list');
  const found = await rows(page, id);
  is(found.length === 2, `the changes of ${id}: ${found}`);
  const foot = await text(page, '#foot');
  is(!foot.includes(`node ${node.id} `) && /node \d/.test(foot), `after the death of node ${node.id}: ${foot}`);
  await page.fill('.search', 'read anew');
  is((await page.getAttribute('.list', 'aria-rowcount')) === '1', 'the next node did not know what changed meanwhile');
  await page.fill('.search', '');
  // All goes on with a node less.
  await views(walk);
  await actions({ ...walk, api: beside });
  await go(page, url, 'log');
  page.allowed = [];
  console.log(`  node ${node.id} killed: not live for ${went - killed} ms, as long as no node was to be had; ${took} ms until the next one; ${foot}`);
}

/** Each node has its own address: the page leads to another one. */
export async function elsewhere({ browser, page: behind, nodes, tokens, shot }) {
  const [node, other] = nodes.all;
  behind.allowed = ['ERR_', 'Failed to load'];
  const page = await opened(browser);
  await login(page, node.url, tokens.admin, 'members');
  // By now it has read of the other nodes, too.
  await shows(page, 'leader');
  await go(page, node.url, 'service/shop');
  page.allowed = ['ERR_', 'Failed to load'];
  await nodes.kill(node);
  await stale(page);
  await shot(page, 'elsewhere');
  const link = page.locator('#stale .others a', { hasText: `node ${other.id} ` });
  const opens = page.context().waitForEvent('page');
  await link.click({ timeout: 10_000 });
  const next = await opens;
  if (tokens.admin) {
    await next.waitForSelector('#token');
    await next.fill('#token', tokens.admin);
    await next.press('#token', 'Enter');
  }
  await live(next);
  is(next.url().startsWith(`${other.url}/console/`) && next.url().endsWith('/service/shop'), `the link leads to ${next.url()}`);
  await shows(next, 'shop-1');
  await nodes.run();
  await live(page);
  await page.context().close();
  await live(behind);
  behind.allowed = [];
}

/** With one of three nodes left, the page reads from it, and says that nothing new comes. */
export async function alone({ page, url, nodes, front, shot, another }) {
  const [node, ...others] = nodes.all;
  const isLost = async () => {
    await shows(page, 'no leader in sight', '#stale', 30_000);
    is((await text(page, '#foot')).startsWith('Not live'), `without a leader, the page says ${await text(page, '#foot')}`);
    await shows(page, 'shop-1');
  };
  front.to = [node];
  page.allowed = ['ERR_', 'Failed to load'];
  await go(page, url, 'service/shop');
  await again(page, front);
  await nodes.kill(...others);
  await isLost();
  await turn(page, place('overview'));
  await shows(page, 'NO QUORUM');
  await shot(page, 'alone');
  await nodes.run();
  await live(page);
  await shows(page, 'voters answer');
  // The same while the page has no connection: it learns of it as it comes again.
  await turn(page, place('service/shop'));
  front.to = [];
  front.drop();
  await nodes.kill(...others);
  await until(() => `node ${node.id} has no leader`, async () => (await another(node).call('GET', '/api/v1/status')).body.header.leader_id === '0');
  front.to = [node];
  await isLost();
  await nodes.run();
  await live(page);
  front.to = nodes.all;
  page.allowed = [];
}

/** Breaks all connections; the page comes again. */
async function again(page, front) {
  const follows = page.waitForResponse((it) => it.url().includes('/watch'), { timeout: 30_000 });
  front.drop();
  await follows;
}

/** The same addresses lead to another cluster: nothing of the one before stays, and the page says why. */
export async function refounded({ page, url, nodes, api, shot }) {
  page.allowed = ['ERR_', 'Failed to load'];
  await go(page, url, 'log');
  const cluster = () => text(page, '#foot').then((foot) => foot.match(/cluster (\w+)/)?.[1]);
  const before = await cluster();
  await nodes.refound();
  await live(page);
  await api.must(api.put('founded', 'founded-1'));
  await shows(page, 'all was read anew', '.list');
  await shows(page, 'founded/founded-1', '.list');
  await page.waitForFunction((it) => !document.querySelector('#foot').textContent.includes(it), before, { timeout: 10_000 })
    .catch(async () => is(false, `the page still speaks of cluster ${await cluster()}`));
  await go(page, url, 'services');
  const found = await rows(page);
  is(found.length === 1 && found[0].includes('founded'), `services of the new cluster: ${found}`);
  await shot(page, 'refounded');
  await clean(page, 'refounded');
  page.allowed = [];
}
