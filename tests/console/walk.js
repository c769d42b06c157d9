// Walks through every view and action of the console in Chromium, at nodes that run already (`quorate dev`), which it fills.
//
//   npm ci && node walk.js --node http://127.0.0.1:7201 --node http://127.0.0.1:7202 [--token T] [--reader T] [--shots DIR]
//
// Ends with 1 where something is not as it should be: a dialog, a report of the content security policy, an error in the
// console, a serious fault of accessibility, a slow frame, a view that is not what the registry has.

import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { Api, MARKUP, PAYLOADS } from './api.js';
import { proxy } from './proxy.js';
import { units } from './units.js';

const { values } = parseArgs({ options: {
  node: { type: 'string', multiple: true, default: ['http://127.0.0.1:7201'] },
  token: { type: 'string', default: '' },
  reader: { type: 'string', default: '' },
  shots: { type: 'string', default: '' },
  crowd: { type: 'string', default: '10000' },
  chromium: { type: 'string', default: '/usr/bin/chromium' },
  only: { type: 'string', default: '' },
} });
const nodes = values.node.map((node) => new URL(node));
const crowd = Number(values.crowd);
const api = new Api(nodes[0], values.token);
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** Frames of a list of 10,000 take no longer, 95 of 100: two of a display with 60 Hz. */
const FRAME_MS = 34;
const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 390, height: 844 };
const VIEWS = ['overview', 'services', 'service/shop', 'instance/shop/shop-1', 'graph', 'graph/shop', 'overrides', 'members', 'log', 'me'];

const faults = [];
const fault = (what) => {
  faults.push(what);
  console.log(`  FAULT ${what}`);
};
const is = (truth, what) => (truth ? undefined : fault(what));

async function fill() {
  const put = (...of) => api.must(api.put(...of));
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

/** A page whose dialogs, errors and reports are faults. */
async function opened(browser, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, colorScheme: 'light', ...options });
  const page = await context.newPage();
  page.allowed = [];
  page.on('dialog', (dialog) => {
    fault(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('pageerror', (error) => fault(`an error in the page: ${error.stack}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !page.allowed.some((it) => message.text().includes(it))) fault(`the console: ${message.text()}`);
  });
  await page.addInitScript(() => {
    self.reports = [];
    document.addEventListener('securitypolicyviolation', (event) => self.reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  });
  return page;
}

const place = (view) => `#/default/${view}`;

async function go(page, url, view) {
  const next = `${url}/console/${place(view)}`;
  if (page.url().startsWith(`${url}/console/`)) await page.evaluate((hash) => (location.hash = hash), place(view));
  else await page.goto(next);
  await page.waitForSelector('#foot.on', { timeout: 30_000 });
  await page.waitForTimeout(400);
}

async function clean(page, where) {
  const { reports, pwned, cookie, kept, local } = await page.evaluate(() => ({ reports: self.reports, pwned: self.pwned, cookie: document.cookie, kept: Object.keys(sessionStorage), local: Object.keys(localStorage) }));
  is(reports.length === 0, `${where}: reports of the policy: ${reports}`);
  is(pwned === undefined, `${where}: foreign script ran`);
  is(cookie === '', `${where}: a cookie: ${cookie}`);
  is(kept.every((it) => it === 'quorate.token'), `${where}: sessionStorage has ${kept}`);
  is(local.every((it) => it === 'quorate.theme'), `${where}: localStorage has ${local}`);
  const links = await page.$$eval('a', (all) => all.map((it) => it.getAttribute('href')));
  const odd = links.filter((it) => !/^(#|https?:\/\/)/.test(it));
  is(odd.length === 0, `${where}: links to ${odd}`);
}

async function login(page, url) {
  await page.goto(`${url}/console/`);
  if (!values.token) return;
  page.allowed.push('401');
  await page.waitForSelector('#token');
  await page.fill('#token', 'qrt_wrong');
  await page.press('#token', 'Enter');
  await page.waitForSelector('.login .problem');
  await page.fill('#token', values.token);
  await page.press('#token', 'Enter');
  await page.waitForSelector('#foot.on');
  page.allowed = [];
  is(!page.url().includes(values.token), 'the token is in the address');
}

async function headers(url) {
  const answer = await fetch(`${url}/console/`);
  const policy = answer.headers.get('content-security-policy') ?? '';
  for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]) {
    is(policy.includes(part), `the policy lacks ${part}`);
  }
  is(!/unsafe|\*|https?:/.test(policy), `the policy allows more: ${policy}`);
  is(answer.headers.get('x-content-type-options') === 'nosniff', 'no nosniff');
  is(answer.headers.get('referrer-policy') === 'no-referrer', 'no no-referrer');
  is(answer.headers.get('cross-origin-opener-policy') === 'same-origin', 'no opener policy');
  is(answer.headers.get('set-cookie') === null, 'it sets a cookie');
  const text = await answer.text();
  is(!/<script(?![^>]*\bsrc=)|style=|\son\w+=/.test(text), 'the page has script or style in its text');
  for (const path of ['/', '/console']) {
    const moved = await fetch(url + path, { redirect: 'manual' });
    is([301, 302, 303, 307, 308].includes(moved.status) && moved.headers.get('location') === '/console/', `${path} leads to ${moved.headers.get('location')}`);
  }
}

const text = (page, selector) => page.$eval(selector, (it) => it.textContent);

async function views(page, url) {
  const told = {
    overview: 'voters answer', services: 'shop', 'service/shop': 'shop-1', 'instance/shop/shop-1': 'payments', graph: 'not registered',
    'graph/shop': 'around shop', overrides: 'payload-0', members: 'leader', log: 'since this page watches', me: values.token ? 'You are' : 'checks no rights',
  };
  for (const view of VIEWS) {
    await go(page, url, view);
    await page.waitForFunction((word) => document.querySelector('main').innerText.includes(word), told[view], { timeout: 10_000 }).catch(() => fault(`${view} does not show "${told[view]}"`));
    await clean(page, view);
  }
}

async function payloads(page, url) {
  await go(page, url, 'service/payload');
  await clean(page, 'payloads in a list');
  const rows = await page.$$eval('.spacer .row:not([hidden]) .cell.id', (all) => all.map((it) => it.textContent));
  is(rows.length > 5, `rows of payloads: ${rows}`);
  for (const id of rows) {
    await go(page, url, `instance/payload/${id}`);
    for (const it of await page.$$('main summary')) await it.click();
    await page.hover('dl.pairs dd');
    await clean(page, `payload ${id}`);
  }
  await go(page, url, 'instance/payload/payload-0');
  is((await text(page, 'main')).includes(MARKUP), 'the markup is not shown as it is');
  for (const view of ['graph', 'overrides', 'log']) {
    await go(page, url, view);
    await clean(page, `payloads in ${view}`);
  }
  // Places that no view made, and instances that nobody has.
  page.allowed.push('404');
  for (const view of [`service/${encodeURIComponent(MARKUP)}`, `instance/${encodeURIComponent(MARKUP)}/x`, '%E0%A4%A', '__proto__', 'constructor']) {
    await page.evaluate((hash) => (location.hash = hash), place(view));
    await page.waitForTimeout(200);
    await clean(page, `place ${view}`);
  }
  page.allowed = [];
}

async function keyboard(page, url) {
  await go(page, url, 'services');
  await page.keyboard.press('/');
  await page.keyboard.type('shop');
  await page.waitForFunction(() => document.querySelectorAll('.spacer .row:not([hidden])').length === 1);
  await page.keyboard.press('Escape');
  await page.keyboard.press('j');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => location.hash.endsWith('/service/shop'));
  await page.waitForTimeout(300);
  for (const key of ['j', 'j', 'k', 'j']) await page.keyboard.press(key);
  is((await page.evaluate(() => document.activeElement.textContent)) === 'shop-2', 'j and k choose a row');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => location.hash.endsWith('/instance/shop/shop-2'));
  for (const up of ['/service/shop', '/services']) {
    await page.keyboard.press('Escape');
    await page.waitForFunction((end) => location.hash.endsWith(end), up);
  }
  await page.keyboard.press('/');
  await page.keyboard.press('Control+a');
  await page.keyboard.press('Delete');
  await page.keyboard.press('Escape');
  await page.keyboard.press('?');
  await page.waitForSelector('dialog[open]');
  await page.keyboard.press('Escape');
  await page.waitForSelector('dialog', { state: 'detached' });
  for (const [key, view] of [['1', 'overview'], ['5', 'members'], ['6', 'log']]) {
    await page.keyboard.press(key);
    await page.waitForFunction((end) => location.hash.endsWith(end), view);
  }
  for (const theme of ['light', 'dark', undefined]) {
    await page.keyboard.press('t');
    is((await page.evaluate(() => document.documentElement.dataset.theme)) === theme, `t leads to the theme ${theme}`);
  }
  await clean(page, 'keyboard');
}

/** Does what a dialog asks for. */
async function act(page, name, given, done) {
  await page.click(`main button:text-is("${name}")`);
  for (const [field, value] of Object.entries(given)) await page.fill(`#ask-${field}`, value);
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 10_000 });
  if (done) await page.waitForFunction((word) => document.querySelector('main').innerText.includes(word), done, { timeout: 10_000 });
}

async function actions(page, url) {
  await go(page, url, 'instance/shop/shop-3');
  await page.click('main button:text-is("Drain")');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog .problem:not([hidden])');
  await page.keyboard.press('Escape');
  await act(page, 'Drain', { reason: 'a test <b>' }, 'draining. Reason: a test <b>');
  await act(page, 'Weight', { weight: '7', reason: 'less' }, 'draining, weight 7. Reason: less');
  await act(page, 'Out of service', { reason: 'broken' }, 'out of service, weight 7. Reason: broken');
  const now = await api.must(api.call('GET', api.at('shop', 'shop-3')));
  const { override } = now.instance ?? now;
  is(override?.weight === 7 && override.reason === 'broken', `the registry has ${JSON.stringify(override)}`);
  await go(page, url, 'overrides');
  await page.waitForFunction(() => document.querySelector('main').innerText.includes('shop/shop-3'));
  await go(page, url, 'instance/shop/shop-3');
  await act(page, 'Clear override', {});
  await page.waitForFunction(() => !document.querySelector('.override'));
  const seen = await text(page, 'main .history');
  is(seen.includes('status UP → DRAINING') && seen.includes('override cleared'), `the changes of the instance: ${seen}`);
  await page.click('main button:text-is("Deregister")');
  await page.fill('#ask-id', 'shop-4');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog .problem:not([hidden])');
  await page.fill('#ask-id', 'shop-3');
  await page.click('dialog button[type=submit]');
  await page.waitForFunction(() => document.querySelector('main').innerText.includes('not registered'));
  page.allowed.push('404');
  is((await api.call('GET', api.at('shop', 'shop-3'))).status === 404, 'it is still registered');
  await api.must(api.put('shop', 'shop-3', { requires: ['payments'] }));
  page.allowed = [];
  await go(page, url, 'members');
  await page.waitForSelector('main table');
  await act(page, 'Snapshot', {});
  await page.waitForFunction(() => document.querySelector('#toast').textContent.includes('snapshot covers'));
  const before = await text(page, 'main tbody');
  await page.click('main button:text-is("Transfer the lead here") >> nth=0');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 15_000 });
  await page.waitForFunction((old) => document.querySelector('main tbody').textContent !== old, before, { timeout: 15_000 });
  await clean(page, 'actions');
}

async function pausing(page, url) {
  await go(page, url, 'log');
  await api.must(api.put('pause', 'pause-1'));
  await page.waitForFunction(() => document.querySelector('.list').innerText.includes('pause/pause-1'));
  await page.keyboard.press('p');
  await api.must(api.put('pause', 'pause-2'));
  await page.waitForFunction(() => document.querySelector('.sum').textContent.includes('1 more'));
  is(!(await text(page, '.list')).includes('pause-2'), 'the log goes on while it is paused');
  await page.keyboard.press('p');
  await page.waitForFunction(() => document.querySelector('.list').innerText.includes('pause/pause-2'));
}

/** A token that may read has no button. */
async function reading(browser, url) {
  const page = await opened(browser);
  page.allowed.push('401');
  await page.goto(`${url}/console/`);
  await page.fill('#token', values.reader);
  await page.press('#token', 'Enter');
  for (const view of ['instance/shop/shop-1', 'overrides', 'members']) {
    await go(page, url, view);
    const buttons = await page.$$eval('main button', (all) => all.map((it) => it.textContent));
    is(buttons.every((it) => it === 'Copy'), `${view}: a reader has ${buttons}`);
  }
  await go(page, url, 'me');
  await page.click('text=Log out');
  await page.waitForSelector('#token');
  is((await page.evaluate(() => sessionStorage.length)) === 0, 'the token is kept after the log out');
  await page.context().close();
}

async function scrolling(page, url, size) {
  await page.setViewportSize(size);
  await go(page, url, 'service/crowd');
  await page.waitForFunction((rows) => Number(document.querySelector('.list').getAttribute('aria-rowcount')) > rows, crowd, { timeout: 30_000 });
  const frames = await page.evaluate(async () => {
    const scroll = document.querySelector('.scroll');
    const gaps = [];
    const long = [];
    const observer = new PerformanceObserver((list) => long.push(...list.getEntries().map((it) => Math.round(it.duration))));
    observer.observe({ type: 'longtask' });
    const next = () => new Promise(requestAnimationFrame);
    let last = await next();
    for (let at = 0; at < 300; at += 1) {
      // First as a wheel does, then as one who drags the bar.
      scroll.scrollTop += at < 200 ? 120 : 3_000;
      const now = await next();
      gaps.push(now - last);
      last = now;
    }
    observer.disconnect();
    gaps.sort((a, b) => a - b);
    const share = (part) => Math.round(gaps[Math.floor(gaps.length * part)] * 10) / 10;
    const blank = [...document.querySelectorAll('.spacer .row:not([hidden])')].every((it) => it.textContent === '');
    return { p50: share(0.5), p95: share(0.95), p99: share(0.99), max: share(0.9999), long, blank, nodes: document.querySelectorAll('*').length };
  });
  console.log(`frames at ${size.width}: ${JSON.stringify(frames)}`);
  is(frames.p95 <= FRAME_MS, `95 of 100 frames took up to ${frames.p95} ms`);
  is(!frames.blank, 'the rows are blank');
  const began = Date.now();
  await page.fill('.search', 'crowd-09');
  await page.waitForFunction((rows) => Number(document.querySelector('.list').getAttribute('aria-rowcount')) < rows, crowd);
  console.log(`search among ${crowd}: ${Date.now() - began} ms`);
  await page.fill('.search', '');
  await page.setViewportSize(WIDE);
}

async function dying(page, url, front) {
  await go(page, url, 'log');
  await page.fill('.search', 'meanwhile');
  page.allowed.push('ERR_', 'Failed to load');
  front.turn(null);
  await page.waitForSelector('#stale:not([hidden])', { timeout: 10_000 });
  await page.waitForFunction(() => /As of \d+ s ago, not live/.test(document.querySelector('#stale').textContent), null, { timeout: 10_000 });
  if (values.shots) await page.screenshot({ path: `${values.shots}/stale.png` });
  await api.must(api.put('meanwhile', 'meanwhile-1', { zone: 'eu-1a' }));
  await api.must(api.put('meanwhile', 'meanwhile-1', { zone: 'eu-1b' }));
  front.turn(nodes[1] ?? nodes[0]);
  await page.waitForSelector('#stale', { state: 'hidden', timeout: 30_000 });
  await page.waitForFunction(() => document.querySelector('.list').innerText.includes('meanwhile/meanwhile-1'), null, { timeout: 10_000 });
  const rows = await page.$$eval('.spacer .row:not([hidden])', (all) => all.map((it) => it.innerText).filter((it) => it.includes('meanwhile-1')));
  is(rows.length >= 1 && rows.length <= 2, `the changes of meanwhile: ${rows}`);
  is(rows.some((it) => it.includes('eu-1b')), `the last change of meanwhile: ${rows}`);
  await page.fill('.search', 'read anew');
  is((await page.getAttribute('.list', 'aria-rowcount')) === '1', 'the node did not know what changed meanwhile');
  page.allowed = [];
  console.log(`after the death of the node: ${rows.length} changes of meanwhile, ${await text(page, '#foot')}`);
}

/** Pictures, and what axe finds, of all views in both sizes and themes. */
async function pictures(browser, url) {
  for (const [size, colorScheme] of [[WIDE, 'light'], [WIDE, 'dark'], [NARROW, 'light'], [NARROW, 'dark']]) {
    const page = await opened(browser, { viewport: size, colorScheme, bypassCSP: true });
    await login(page, url);
    for (const view of VIEWS) {
      await go(page, url, view);
      if (values.shots) await page.screenshot({ path: `${values.shots}/${view.replaceAll('/', '-')}-${size.width}-${colorScheme}.png` });
      await judged(page, `${view} at ${size.width}, ${colorScheme}`);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      is(over <= 0, `${view} at ${size.width} is ${over} px too wide`);
    }
    await go(page, url, 'instance/shop/shop-1');
    await page.click('main button:text-is("Drain")');
    if (values.shots) await page.screenshot({ path: `${values.shots}/dialog-${size.width}-${colorScheme}.png` });
    await judged(page, `dialog at ${size.width}, ${colorScheme}`);
    await page.context().close();
  }
}

async function judged(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => self.axe.run(document, { resultTypes: ['violations'] }));
  for (const it of found.violations) {
    const line = `${where}: ${it.impact}: ${it.id}: ${it.nodes.slice(0, 2).map((node) => node.html.slice(0, 120)).join(' | ')}`;
    if (['serious', 'critical'].includes(it.impact)) fault(line);
    else console.log(`  note ${line}`);
  }
}

if (values.shots) mkdirSync(values.shots, { recursive: true });
await fill();
const front = await proxy(nodes);
const browser = await chromium.launch({ executablePath: values.chromium, args: ['--no-sandbox'] });
try {
  await headers(front.url);
  const page = await opened(browser);
  await login(page, front.url);
  const modules = async () => (await page.evaluate(units)).forEach(fault);
  const steps = { modules, views, payloads, keyboard, actions, pausing, scrolling: async (...of) => {
    await scrolling(...of, WIDE);
    await scrolling(...of, NARROW);
  }, reading: async () => values.reader && reading(browser, front.url), pictures: () => pictures(browser, front.url), dying: (...of) => dying(...of, front) };
  for (const [name, step] of Object.entries(steps)) {
    if (values.only && !values.only.split(',').includes(name)) continue;
    console.log(name);
    await step(page, front.url).catch((error) => fault(`${name}: ${error.stack}`));
  }
} finally {
  await browser.close();
  front.close();
}
console.log(faults.length ? `${faults.length} faults` : 'all as it should be');
process.exitCode = faults.length ? 1 : 0;
