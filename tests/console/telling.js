// Figures that views show, and what an instance went through before anybody watched.

import { clean, fault, go, is, login, opened, rows, shows, text, turn, place } from './page.js';
import { until } from './until.js';

/** What a fact of the overview says. */
const fact = (page, term) => page.$$eval('.figures > div', (all, it) => all.find((each) => each.querySelector('dt').textContent === it)?.querySelector('dd').textContent, term);

/** A column of a table, without those that say nothing. */
const column = (page, head) => page.$$eval('main tbody td', (all, it) => all.filter((each) => each.dataset.head === it).map((each) => each.textContent).filter((told) => told !== '–'), head);

export async function figures(walk) {
  const { page, url, api, nodes } = walk;
  await go(page, url, 'overview');
  await shows(page, 'voters answer');
  const { header } = await api.must(api.call('GET', '/api/v1/status'));
  for (const [term, should] of [['Term', /^\d+$/], ['Revision', /^[\d,]+$/], ['Greatest lag', /^\d+ entr(y|ies)$/], ['Leader', /^node \d$/]]) {
    const told = await fact(page, term);
    is(should.test(told), `overview: ${term}: ${told}`);
  }
  is(Number(await fact(page, 'Term')) >= header.term, `overview: term ${await fact(page, 'Term')}, not ${header.term}`);
  is(Number((await fact(page, 'Revision')).replaceAll(',', '')) > 100, `overview: revision ${await fact(page, 'Revision')}`);
  is((await text(page, '.guard')).includes('Registry time runs'), `protection: ${await text(page, '.guard')}`);
  await go(page, url, 'members');
  await shows(page, 'leader');
  for (const [head, should] of [['Term', /^\d+$/], ['Lag', /^\d+$/], ['Applied', /^[\d,]+( of [\d,]+)?$/], ['Hash', /^[0-9a-f]{8}at [\d,]+$/], ['Disk free', /^[\d,.]+ [MG]iB$/]]) {
    const told = await column(page, head);
    is(told.length === nodes.all.length && told.every((it) => should.test(it)), `members: ${head}: ${told}`);
  }
  const right = await page.$$eval('main td .buttons button', (all) => Math.max(...all.map((it) => it.getBoundingClientRect().right)));
  is(right <= 1280, `members: buttons end at ${right}: one has to scroll for them`);
  // These nodes have no certificates: the column is there, and says so.
  is((await page.$$eval('main td[data-head=Certificate]', (all) => all.map((it) => it.textContent))).every((it) => it === '–'), 'members: certificates of nodes that have none');
  await go(page, url, 'services');
  await page.fill('.search', 'eu-1b');
  await page.waitForFunction(() => document.querySelector('.sum').textContent.includes(' of '));
  const found = await rows(page);
  is(found.some((it) => it.includes('shop')) && !found.some((it) => it.includes('ledger')), `services in zone eu-1b: ${found}`);
  await page.fill('.search', 'shop');
  await page.waitForFunction(() => document.querySelectorAll('.spacer .row:not([hidden])').length === 1);
  const up = await page.$eval('.spacer .row:not([hidden]) [data-head=Up]', (it) => it.textContent);
  is(/^[1-5]$/.test(up), `services: ${up} of shop are up`);
  await page.fill('.search', '');
  await leases(walk);
  await clean(page, 'figures');
}

/** Only the node that leads knows how long leases have. */
async function leases({ page, url, api, nodes, front }) {
  const leader = await until(() => 'a leader', async () => {
    const { header } = await api.must(api.call('GET', '/api/v1/status'));
    return nodes.all.find((it) => String(it.id) === header.leader_id);
  });
  for (const [node, should] of [[leader, 'Least left of a lease: '], [nodes.all.find((it) => it !== leader), 'the node that leads knows it']]) {
    front.to = [node];
    page.allowed = ['ERR_', 'Failed to load'];
    front.drop();
    await page.waitForFunction((it) => document.querySelector('#foot.on')?.textContent.includes(`node ${it}`), node.id, { timeout: 30_000 });
    await go(page, url, 'services');
    await go(page, url, 'service/shop');
    await shows(page, 'Watched at this node by: 127.');
    await shows(page, should);
    const left = await page.$$eval('.spacer .row:not([hidden]) [data-head="Lease left"]', (all) => all.map((it) => it.textContent));
    is(left.length > 3 && left.every((it) => (node === leader ? /^\d+ min$/ : /^–$/).test(it)), `left of the leases of shop at node ${node.id}: ${left}`);
  }
  front.to = nodes.all;
  front.drop();
  await page.waitForSelector('#foot.on', { timeout: 30_000 });
  page.allowed = [];
}

const REFUSES = 'http://127.0.0.1:1';

/** What an operator is to look at: an instance whose check fails, and why; a lease that ended while the page watched. */
export async function attention({ page, url, api, nodes, shot }) {
  const checks = [{ tcp: {}, endpoint: 'http', interval_ms: 1_000, failures_before_critical: 1 }];
  const reason = `${REFUSES.replace('http', 'tcp')}: Connection refused`;
  const health = '.spacer .row:not([hidden]) [data-head=Health]';
  await api.must(api.put('sick', 'sick-1', { endpoints: { http: REFUSES }, checks }));
  await go(page, url, 'service/sick');
  await shows(page, 'critical', health, 20_000);
  await shows(page, reason, health);
  await shows(page, '0 usable of 1 instance: 1 up, 1 critical', '.sum');
  await go(page, url, 'instance/sick/sick-1');
  await shows(page, `critical ${reason}`, '.about');
  await go(page, url, 'overview');
  const needs = () => page.$$eval('.needs li', (all) => all.map((it) => it.textContent));
  await shows(page, 'no usable instance of 1', '.needs');
  is((await needs()).includes('sickno usable instance of 1'), `needs attention: ${await needs()}`);
  await api.must(api.put('short', 'short-1', { ttl_ms: 1_000 }));
  await shows(page, 'ended in the last 10 minutes', '.needs', 30_000);
  const ended = (await needs()).filter((it) => it.includes('ended in'));
  is(/^Leases\d+ leases? ended in the last 10 minutes, the last one of short\/short-1 at \d\d:\d\d:\d\d$/.test(ended), `what ended: ${ended}`);
  await shot(page, 'attention');
  await clean(page, 'attention');
  // A port that takes connections.
  await api.must(api.put('sick', 'sick-1', { endpoints: { http: nodes.all[0].url }, checks }));
  await page.waitForFunction(() => !document.querySelector('.needs').textContent.includes('sick'), null, { timeout: 20_000 });
  await go(page, url, 'service/sick');
  await shows(page, 'passing', health);
}

/** A page that is opened later is told what its node still has. */
export async function past({ browser, url, api, tokens, crowd, shot }) {
  for (const zone of ['eu-1a', 'eu-1b']) await api.must(api.put('past', 'past-1', { zone, metadata: { note: "it's $HOME" } }));
  const page = await opened(browser);
  await login(page, url, tokens.admin);
  await turn(page, place('instance/past/past-1'));
  await shows(page, 'zone eu-1a → eu-1b', '.history');
  const told = await page.$$eval('.history tbody tr', (all) => all.map((it) => it.innerText.replaceAll(/\s+/g, ' ')));
  is(told.length === 2 && told.every((it) => it.includes('before')), `what was before the page: ${told}`);
  await api.must(api.put('past', 'past-1', { zone: 'eu-1c' }));
  await shows(page, 'zone eu-1b → eu-1c', '.history');
  await page.click('main summary');
  const line = await text(page, '.command');
  is(line.startsWith('quorate register past past-1 --endpoint http=http://127.0.0.1:1 --zone eu-1c'), `the command: ${line}`);
  await shot(page, 'past');
  if (crowd > 500) await large(page);
  await clean(page, 'past');
  await page.context().close();
}

/** More changes than are read unasked. */
async function large(page) {
  await turn(page, place('instance/crowd/crowd-00007'));
  await shows(page, 'eu-1', '.about');
  is((await page.$$('.history button')).length === 1, 'the changes of a large service are read unasked');
  await page.click('.history button');
  await page.waitForFunction(() => !document.querySelector('.history button') && !document.querySelector('.history').textContent.includes('Reading'), null, { timeout: 20_000 }).catch(() => fault('the changes of a large service do not come'));
  const told = await text(page, '.history');
  // It may be three minutes ago by now.
  is(/added|no longer has/.test(told), `the changes of a large service: ${told}`);
}
