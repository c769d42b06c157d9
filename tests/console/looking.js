// Every view, what others registered in it, the keyboard, 10,000 instances, and pictures of all of it.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { cpus } from 'node:os';
import { MARKUP } from './api.js';
import { NARROW, VIEWS, WIDE, clean, fault, go, is, login, opened, place, shows, skipped, text, turn } from './page.js';
import { units } from './units.js';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** One of a display with 60 Hz, and a little: half of the frames of a list of 10,000 take no longer. */
const FRAME_MS = 18;
/** And nineteen of twenty are not more than one late. */
const LATE_MS = 34;
/** Of a processor, the page takes no more for a frame; with all rows of 3,000 in the page, it took 17. */
const OWN_MS = 12;
/** All of it in one of so many runs, as others may come amid them, and on a machine that has time: with less of its processors in use than this. */
const RUNS = 3;
const BUSY_LOW = 0.3;
/** If that does not come for so long, frames are not judged. */
const SETTLES_MS = 60_000;

export async function headers({ url }) {
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
  const whole = await answer.text();
  is(!/<script(?![^>]*\bsrc=)|style=|\son\w+=/.test(whole), 'the page has script or style in its text');
  for (const path of ['/', '/console']) {
    const moved = await fetch(url + path, { redirect: 'manual' });
    is([301, 302, 303, 307, 308].includes(moved.status) && moved.headers.get('location') === '/console/', `${path} leads to ${moved.headers.get('location')}`);
  }
}

export async function modules({ page }) {
  (await page.evaluate(units)).forEach(fault);
}

export async function views({ page, url, told }) {
  for (const view of Object.keys(VIEWS)) {
    await go(page, url, view);
    await shows(page, told(view));
    await clean(page, view);
  }
}

export async function payloads({ page, url }) {
  await go(page, url, 'service/payload');
  await clean(page, 'payloads in a list');
  const ids = await page.$$eval('.spacer .row:not([hidden]) .cell.id', (all) => all.map((it) => it.textContent));
  is(ids.length > 5, `rows of payloads: ${ids}`);
  for (const id of ids) {
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
  page.allowed = ['404'];
  for (const view of [`service/${encodeURIComponent(MARKUP)}`, `instance/${encodeURIComponent(MARKUP)}/x`, '%E0%A4%A', '__proto__', 'constructor']) {
    await turn(page, place(view));
    await clean(page, `place ${view}`);
  }
  page.allowed = [];
}

/** Waits until a place is open: the view comes a moment after the address has changed. */
const open = (page, end, title) =>
  page.waitForFunction(([hash, of]) => location.hash.endsWith(hash) && document.title === `${of} – Quorate`, [end, title]);

export async function keyboard({ page, url }) {
  const press = async (...keys) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  await go(page, url, 'services');
  await press('/');
  await page.keyboard.type('shop');
  await page.waitForFunction(() => document.querySelectorAll('.spacer .row:not([hidden])').length === 1);
  await press('Escape', 'j', 'Enter');
  await open(page, '/service/shop', 'shop');
  await press('j', 'j', 'k', 'j');
  is((await page.evaluate(() => document.activeElement.textContent)) === 'shop-2', 'j and k choose a row');
  await press('Enter');
  await open(page, '/instance/shop/shop-2', 'shop/shop-2');
  await press('Escape');
  await open(page, '/service/shop', 'shop');
  await press('Escape');
  await open(page, '/services', 'Services');
  await press('/', 'Control+a', 'Delete', 'Escape', '?');
  await page.waitForSelector('dialog[open]');
  await press('Escape');
  await page.waitForSelector('dialog', { state: 'detached' });
  for (const [key, view, title] of [['1', '/overview', 'Overview'], ['5', '/members', 'Members'], ['6', '/log', 'Live log']]) {
    await press(key);
    await open(page, view, title);
  }
  for (const theme of ['light', 'dark', undefined]) {
    await press('t');
    is((await page.evaluate(() => document.documentElement.dataset.theme)) === theme, `t leads to the theme ${theme}`);
  }
  await clean(page, 'keyboard');
}

export async function scrolling(walk) {
  for (const size of [WIDE, NARROW]) await scrolled(walk, size);
}

async function scrolled({ page, url, crowd }, size) {
  await page.setViewportSize(size);
  await go(page, url, 'service/crowd');
  await page.waitForFunction((rows) => Number(document.querySelector('.list').getAttribute('aria-rowcount')) > rows, crowd, { timeout: 30_000 });
  const isSmooth = (it) => it.p50 <= FRAME_MS && it.p95 <= LATE_MS && it.own <= OWN_MS;
  let settled = true;
  let frames;
  for (let run = 0; run < RUNS && settled && !(frames && isSmooth(frames)); run += 1) {
    settled = await settles();
    frames = await measured(page);
    console.log(`  frames at ${size.width}, ms: ${JSON.stringify(frames)}`);
  }
  if (settled) is(isSmooth(frames), `frames at ${size.width} are not smooth`);
  else skipped(`frames at ${size.width}`, 'the machine has too much else to do');
  is(!frames.blank, 'the rows are blank');
  const began = Date.now();
  await page.fill('.search', 'crowd-09');
  await page.waitForFunction((rows) => Number(document.querySelector('.list').getAttribute('aria-rowcount')) < rows, crowd);
  console.log(`  search among ${crowd}: ${Date.now() - began} ms`);
  await page.fill('.search', '');
  await page.setViewportSize(WIDE);
}

/** Waits until this machine has time; gives whether it has. */
async function settles() {
  const spent = () => cpus().reduce(([idle, all], { times }) => [idle + times.idle, all + Object.values(times).reduce((sum, it) => sum + it)], [0, 0]);
  const end = Date.now() + SETTLES_MS;
  while (Date.now() < end) {
    const before = spent();
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const [idle, all] = spent().map((it, at) => it - before[at]);
    if (1 - idle / all < BUSY_LOW) return true;
  }
  return false;
}

/** How long frames took, and, of a processor, the page for each (`own`). */
async function measured(page) {
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable', { timeDomain: 'threadTicks' });
  const spent = async () => (await session.send('Performance.getMetrics')).metrics.find((it) => it.name === 'TaskDuration').value;
  const before = await spent();
  const frames = await page.evaluate(scroll);
  const own = Math.round(((await spent()) - before) / frames.count * 10_000) / 10;
  await session.detach();
  return { own, ...frames };
}

/** In the page: goes through the list, and tells how long frames took. */
async function scroll() {
  const list = document.querySelector('.scroll');
  list.scrollTop = 0;
  const gaps = [];
  const next = () => new Promise(requestAnimationFrame);
  let last = await next();
  for (let at = 0; at < 300; at += 1) {
    // First as a wheel does, then as one who drags the bar.
    list.scrollTop += at < 200 ? 120 : 3_000;
    const now = await next();
    gaps.push(now - last);
    last = now;
  }
  gaps.sort((a, b) => a - b);
  const share = (part) => Math.round(gaps[Math.floor(gaps.length * part)] * 10) / 10;
  const blank = [...document.querySelectorAll('.spacer .row:not([hidden])')].every((it) => it.textContent === '');
  return { count: gaps.length, p50: share(0.5), p95: share(0.95), p99: share(0.99), max: share(0.9999), blank, nodes: document.querySelectorAll('*').length };
}

/** Pictures, and what axe finds, of all views in both sizes and themes. */
export async function pictures({ browser, url, tokens, shot, told }) {
  for (const [size, colorScheme] of [[WIDE, 'light'], [WIDE, 'dark'], [NARROW, 'light'], [NARROW, 'dark']]) {
    const name = `${size.width}-${colorScheme}`;
    // The policy would refuse axe, too.
    const page = await opened(browser, { viewport: size, colorScheme, bypassCSP: true });
    await page.goto(`${url}/console/`);
    if (tokens.admin) {
      page.allowed = ['401'];
      await page.waitForSelector('#token');
      await shot(page, `token-${name}`);
      await judged(page, `token at ${name}`);
    }
    await login(page, url, tokens.admin);
    for (const view of Object.keys(VIEWS)) {
      await go(page, url, view);
      await shows(page, told(view));
      await shot(page, `${view.replaceAll('/', '-')}-${name}`);
      await judged(page, `${view} at ${name}`);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      is(over <= 0, `${view} at ${size.width} is ${over} px too wide`);
    }
    await go(page, url, 'service/crowd');
    await shot(page, `service-crowd-${name}`);
    await go(page, url, 'instance/shop/shop-1');
    await page.click('main button:text-is("Drain")');
    await shot(page, `dialog-${name}`);
    await judged(page, `dialog at ${name}`);
    await page.context().close();
  }
}

export async function judged(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => self.axe.run(document, { resultTypes: ['violations'] }));
  for (const it of found.violations) {
    const line = `${where}: ${it.impact}: ${it.id}: ${it.nodes.slice(0, 2).map((node) => node.html.slice(0, 120)).join(' | ')}`;
    if (['serious', 'critical'].includes(it.impact)) fault(line);
    else console.log(`  note ${line}`);
  }
}
