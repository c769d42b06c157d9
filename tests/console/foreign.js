// What a page of another origin can read and change with the browser of somebody who reaches a node: nothing.

import http from 'node:http';
import { fault, is, opened } from './page.js';

const INSTANCE = '/api/v1/namespaces/default/services/ledger/instances/ledger-1';
const READ = ['/', '/console/', '/console/app.js', '/openapi.json', '/healthz', '/readyz', '/metrics', '/sd/prometheus', '/api/v1/me', '/api/v1/status',
  '/api/v1/members', '/api/v1/namespaces/default/services', '/api/v1/namespaces/default/services/shop', INSTANCE];
/** Each would change something, from a page of the node's own with a right to it. */
const WRITTEN = [
  ['PUT', INSTANCE, { endpoints: { http: 'http://127.0.0.1:666' }, ttl_ms: 60_000 }], ['PATCH', INSTANCE, { weight: 1 }], ['DELETE', INSTANCE],
  ['PUT', `${INSTANCE}/override`, { status: 'DRAINING', reason: 'a stranger' }], ['POST', '/api/v1/transfer-leader', {}], ['POST', '/api/v1/snapshot', {}],
  ['POST', INSTANCE, { endpoints: { http: 'http://127.0.0.1:666' } }],
];
const TYPES = ['application/json', 'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data', undefined];

/** A page without a policy of its own. */
async function stranger(address) {
  const server = http.createServer((_request, response) => response.setHeader('content-type', 'text/html').end('<!doctype html><title>Another</title>'));
  await new Promise((resolve) => server.listen(0, address, resolve));
  return { port: server.address().port, close: () => server.close() };
}

/** In the page: reads in each way that a page has. Gives what was read. */
async function reads([node, paths, token]) {
  const read = [];
  const headers = token ? [{}, { authorization: `Bearer ${token}` }] : [{}];
  for (const path of paths) {
    for (const mode of ['cors', 'no-cors']) {
      for (const more of headers) {
        for (const credentials of ['omit', 'include']) {
          const answer = await fetch(node + path, { mode, headers: more, credentials, signal: AbortSignal.timeout(10_000) }).catch(() => null);
          const body = answer ? await answer.text().catch(() => '') : '';
          if (body || (answer && answer.type !== 'opaque')) read.push(`${mode} ${path} ${body.slice(0, 80)}`);
        }
      }
    }
    const made = (tag, attribute) => new Promise((resolve) => {
      const element = document.createElement(tag);
      element.onload = () => resolve(true);
      element.onerror = () => resolve(false);
      element[attribute] = node + path;
      document.body.append(element);
    });
    if (await made('script', 'src')) read.push(`script ${path}`);
    if (await made('img', 'src')) read.push(`img ${path}`);
  }
  const stream = new EventSource(`${node}/api/v1/namespaces/default/watch`);
  const told = await new Promise((resolve) => {
    for (const event of ['open', 'snapshot', 'message']) stream.addEventListener(event, () => resolve(event));
    stream.addEventListener('error', () => resolve(null));
  });
  stream.close();
  if (told) read.push(`EventSource ${told}`);
  const socket = new WebSocket(`${node.replace('http', 'ws')}/api/v1/status`);
  if (await new Promise((resolve) => Object.assign(socket, { onopen: () => resolve(true), onerror: () => resolve(false) }))) read.push('WebSocket');
  return read;
}

/** In the page: writes in each way that a page has. Gives what was answered in a way that the page could read. */
async function writes([node, written, types, token]) {
  const answered = [];
  const headers = token ? [{}, { authorization: `Bearer ${token}` }] : [{}];
  for (const [method, path, body] of written) {
    for (const mode of ['cors', 'no-cors']) {
      for (const type of types) {
        for (const more of headers) {
          for (const given of body ? [JSON.stringify(body), undefined] : [undefined]) {
            const options = { method, mode, credentials: 'include', headers: { ...more, ...(type && { 'content-type': type }) }, body: given, signal: AbortSignal.timeout(10_000) };
            const answer = await fetch(node + path, options).catch(() => null);
            if (answer && answer.type !== 'opaque') answered.push(`${method} ${path} ${answer.status}`);
          }
        }
      }
    }
    if (method !== 'POST') continue;
    for (const type of ['text/plain', 'application/json']) navigator.sendBeacon(node + path, new Blob([JSON.stringify(body)], { type }));
    for (const enctype of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
      const frame = document.createElement('iframe');
      frame.name = `frame-${Math.random()}`;
      document.body.append(frame);
      const form = document.createElement('form');
      Object.assign(form, { method: 'post', action: node + path, enctype, target: frame.name });
      // As text it is JSON: {"a":"=", ...}.
      const field = document.createElement('input');
      Object.assign(field, { name: `${JSON.stringify(body).slice(0, -1)}${Object.keys(body).length ? ',' : ''}"a":"`, value: '"}' });
      form.append(field);
      document.body.append(form);
      const loaded = new Promise((resolve) => frame.addEventListener('load', resolve, { once: true }));
      form.submit();
      await loaded;
    }
  }
  return answered;
}

/** What the node answers to a write that it does not even look at. */
const UNHEARD = ['401', '403', '405', '415'];

/** What a write would change, how many came, and how many the node looked at. */
async function state(node, api, token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const metrics = await (await fetch(`${node.url}/metrics`, { headers })).text();
  const found = [...metrics.matchAll(/^quorate_http_requests_total\{(.*)\} (\d+)/gm)].map(([, labels, count]) => {
    const [method, code] = ['method', 'code'].map((label) => labels.match(new RegExp(`${label}="(.*?)"`))[1]);
    return { method, code, count: Number(count) };
  });
  const sum = (which) => found.filter(which).reduce((all, it) => all + it.count, 0);
  const isWrite = (it) => ['PUT', 'PATCH', 'POST', 'DELETE'].includes(it.method);
  const of = async (path) => JSON.stringify(await api.must(api.call('GET', `/api/v1/namespaces/default/${path}`)), (key, value) => (key === 'header' ? undefined : value));
  const writes = sum(isWrite);
  const heard = sum((it) => isWrite(it) && !UNHEARD.includes(it.code));
  return { writes, changed: [heard, await of('services/ledger'), await of('overrides')].join(' ') };
}

export async function foreign({ browser, nodes, another, tokens }) {
  const node = nodes.all[0];
  const api = another(node);
  const server = await stranger('127.0.0.1');
  const token = tokens.admin ?? 'qrt_any';
  // Other machines are not called as this one is: a browser tells them less of where a request comes from.
  const pairs = [[`http://127.0.0.1:${server.port}`, node.url], [`http://localhost:${server.port}`, node.url], [`http://foreign.test:${server.port}`, node.url],
    [`http://foreign.test:${server.port}`, 'http://node.test:7201']];
  for (const [origin, at] of pairs) {
    const page = await opened(browser);
    page.allowed = [''];
    await page.goto(origin);
    const before = await state(node, api, tokens.admin);
    const read = await page.evaluate(reads, [at, READ, token]);
    is(read.length === 0, `a page of ${origin} has read of ${at}: ${read.join('; ')}`);
    const answered = await page.evaluate(writes, [at, WRITTEN, TYPES, token]);
    is(answered.length === 0, `a page of ${origin} got answers of ${at}: ${answered.join('; ')}`);
    const after = await state(node, api, tokens.admin);
    is(before.changed === after.changed, `a page of ${origin} changed ${at}: ${before.changed} became ${after.changed}`);
    is(after.writes > before.writes, `no write of a page of ${origin} came to ${at}`);
    await held(page, origin, at);
    await page.context().close();
  }
  server.close();
  await renamed(browser, nodes, tokens);
  await own(browser, node, api, tokens.admin);
}

/** Neither a frame nor a window gives a hold of the console. */
async function held(page, origin, at) {
  await page.evaluate((src) => new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.addEventListener('load', resolve);
    frame.src = src;
    document.body.append(frame);
  }), `${at}/console/`);
  const frames = page.frames().map((it) => it.url()).filter((it) => it.startsWith(`${at}/console/`));
  is(frames.length === 0, `a page of ${origin} has ${frames} in a frame`);
  // Only where nobody on the way can change what it says, a browser heeds who may have a hold of a window.
  if (at.includes('.test')) return;
  const opens = page.context().waitForEvent('page');
  await page.evaluate((src) => void (self.held = open(src)), `${at}/console/`);
  await (await opens).waitForSelector('#brand');
  await page.waitForFunction(() => self.held === null || self.held.closed, null, { timeout: 10_000 }).catch(() => fault(`a page of ${origin} has a hold of a window of ${at}`));
}

/** A page of a name that its owner points to the node, once it is loaded: to the browser, both are one origin. */
async function renamed(browser, nodes, tokens) {
  const page = await opened(browser);
  page.allowed = [''];
  await page.goto('http://node.test:7201/console/');
  const status = await page.evaluate(async () => (await fetch('/api/v1/status')).status);
  // Where a token is asked for, a page under another name has none.
  is(status === (tokens.admin ? 401 : 403), `a page of another name of a node has read its status: HTTP ${status}`);
  await page.context().close();
}

/** The same calls change something, and are answered, from a page of the node's own: so they would be seen. */
async function own(browser, node, api, token) {
  const page = await opened(browser);
  page.allowed = [''];
  await page.goto(`${node.url}/console/`);
  const before = await state(node, api, token);
  const read = await page.evaluate(reads, [node.url, ['/api/v1/namespaces/default/services'], token]);
  is(read.length > 0, 'a page of the node itself reads nothing');
  const answered = await page.evaluate(writes, [node.url, WRITTEN.slice(0, 2), ['application/json'], token]);
  is(answered.some((it) => it.endsWith(' 200')), `a page of the node itself changes nothing: ${answered}`);
  const after = await state(node, api, token);
  is(before.changed !== after.changed, 'what a page of the node itself changed is not seen');
  await page.context().close();
}
