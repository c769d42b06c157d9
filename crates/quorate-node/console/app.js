// The page: which view is open, the keyboard, the status, and how old what is shown is.

import { FORBIDDEN, Refused, Rights, call, token } from './api.js';
import { toast } from './actions.js';
import { button, fill, h, outward, say } from './dom.js';
import { ago } from './format.js';
import { Live } from './live.js';
import * as shapes from './shapes.js';
import { graph } from './views/graph.js';
import { instance } from './views/instance.js';
import { log } from './views/log.js';
import { login, me } from './views/me.js';
import { members } from './views/members.js';
import { overrides } from './views/overrides.js';
import { overview } from './views/overview.js';
import { service } from './views/service.js';
import { services } from './views/services.js';

const VIEWS = { overview, services, service, instance, overrides, members, graph, log, me };
const NAV = [['overview', 'Overview'], ['services', 'Services'], ['graph', 'Dependencies'], ['overrides', 'Overrides'], ['members', 'Members'], ['log', 'Live log'], ['me', 'Me']];
/** Views are drawn anew at most this often, however much changes. */
const DRAW_MS = 250;
const STATUS_MS = 4_000;
/** What the caller may do is read again at most this often. */
const RIGHTS_MS = 10_000;
const THEMES = { auto: 'Theme: as the system', light: 'Theme: light', dark: 'Theme: dark' };

const byId = (id) => document.getElementById(id);

const page = {
  live: new Live(() => draw()),
  rights: new Rights({}),
  status: null,
  statusFault: '',
  namespace: 'default',
  state: new Map(),
  place: (view, ...parts) => `#/${[page.namespace, view, ...parts].map(encodeURIComponent).join('/')}`,
  /** What a view is to find again when it is opened again. */
  kept: (name, first) => page.state.get(name) ?? page.state.set(name, first).get(name),
  useToken: (text) => {
    token.set(text);
    begin();
  },
  logIn: () => show(login(page)),
  logOut: () => {
    token.clear();
    page.live.stop();
    page.live = new Live(() => draw());
    page.status = null;
    page.state.clear();
    page.rights = new Rights({});
    begin();
  },
};

let view = null;
let begun = false;

// ---- Views

function show(next) {
  view?.close?.();
  view = next;
  document.title = `${next.title} – Quorate`;
  fill(byId('main'), next.root);
  next.update();
  if (next.focus) next.focus.focus();
}

function route() {
  if (!begun) return;
  const parts = location.hash.replace(/^#\/?/, '').split('/').filter(Boolean).map(decoded);
  const [namespace = page.namespace, name = 'overview', ...rest] = parts;
  const open = Object.hasOwn(VIEWS, name) ? VIEWS[name] : overview;
  if (namespace !== page.namespace || page.live.namespace === undefined) follow(namespace);
  for (const link of byId('nav').children) {
    link.setAttribute('href', page.place(link.dataset.view));
    const here = link.dataset.view === name || (link.dataset.view === 'services' && ['service', 'instance'].includes(name));
    if (here) {
      link.setAttribute('aria-current', 'page');
      link.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    } else {
      link.removeAttribute('aria-current');
    }
  }
  show(open(page, rest));
  if (view.status) readStatus();
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function follow(namespace, prefix) {
  page.namespace = namespace;
  page.prefix = prefix ?? page.rights.prefix(namespace) ?? '';
  page.live.follow(namespace, page.prefix);
  scope();
}

/** Which part of the registry is shown. */
function scope() {
  const list = h('datalist', { id: 'namespaces' }, page.rights.namespaces.map((name) => h('option', { value: name })));
  const namespace = h('input', { id: 'namespace', value: page.namespace, list: 'namespaces', size: 10, spellcheck: 'false', autocomplete: 'off', onchange: () => {
    page.namespace = namespace.value.trim() || 'default';
    page.live.namespace = undefined;
    location.hash = page.place('services');
    route();
  } });
  const prefix = h('input', { id: 'prefix', value: page.prefix, size: 10, placeholder: 'all', spellcheck: 'false', autocomplete: 'off', onchange: () => follow(page.namespace, prefix.value.trim()) });
  fill(byId('scope'), h('label', null, h('span', null, 'Namespace'), namespace), h('label', null, h('span', null, 'Prefix'), prefix), list);
}

// ---- What the node says

let drawTimer;
function draw() {
  drawTimer ??= setTimeout(() => {
    drawTimer = undefined;
    if (begun && page.live.phase === 'stopped' && page.live.refused === 401) asked(new Refused(401, { detail: page.live.why }));
    if (view && begun) view.update();
    tell();
  }, DRAW_MS);
}

let reading = false;
async function readStatus() {
  if (reading || !begun) return;
  reading = true;
  try {
    page.status = shapes.status(await call('GET', '/api/v1/status'));
    page.statusAt = Date.now();
    page.statusFault = '';
  } catch (error) {
    page.statusFault = error.message;
    if (error.status === 401 && begun) asked(error);
  }
  reading = false;
  draw();
}

let rightsAt = 0;
/** A call was refused: the buttons and the prefix are to be those of the rights as they are now. */
async function readRights() {
  if (!begun || Date.now() - rightsAt < RIGHTS_MS) return;
  rightsAt = Date.now();
  try {
    const before = JSON.stringify(page.rights);
    page.rights = new Rights(await call('GET', '/api/v1/me'));
    // Views have the buttons of the rights with which they were opened.
    if (JSON.stringify(page.rights) !== before) route();
  } catch (error) {
    if (error.status === 401 && begun) asked(error);
  }
  draw();
}

/** The credential is not, or no more, one that the node knows. */
function asked(error) {
  begun = false;
  page.live.stop();
  const had = token.get();
  token.clear();
  show(login(page, had ? error.message : ''));
  tell();
}

async function begin() {
  begun = false;
  try {
    page.rights = new Rights(await call('GET', '/api/v1/me'));
  } catch (error) {
    if (error.status === 401) return asked(error);
    // A node that does not answer now may do so soon.
    page.live.why = error.message;
    if (!(error instanceof Refused) || error.status === 0 || error.status >= 500) setTimeout(begin, 2_000);
    page.live.phase = 'waiting';
    page.live.retryAt = Date.now() + 2_000;
    return tell();
  }
  begun = true;
  page.live.namespace = undefined;
  route();
  readStatus();
}

/** The line at the bottom, and the one that says that what is shown is old. */
function tell() {
  const { live } = page;
  const on = begun && live.isLive;
  byId('nav').hidden = !begun;
  byId('scope').hidden = !begun;
  const node = live.node ? `, node ${live.node}` : '';
  const cluster = live.cluster ? ` · cluster ${live.cluster}` : '';
  const nothing = document.querySelector('.login') ? 'Waits for a token' : 'No connection';
  say(byId('foot'), on ? `Live: revision ${live.revision}${node}${cluster}` : begun ? `Not live${node}` : nothing);
  byId('foot').className = on ? 'on' : 'off';
  const box = byId('stale');
  const isStale = (begun || live.phase === 'waiting') && !on && !(live.phase === 'connecting' && !live.why);
  if (!isStale) {
    box.hidden = true;
    return;
  }
  box.hidden = false;
  const old = live.heardAt ? `As of ${ago(live.heardAt)}, not live. ` : 'Nothing was read yet. ';
  staleText(box, old, stateOf(live));
}

function stateOf(live) {
  if (live.phase === 'live' && live.isNew) return 'The node is not heard any more: what is shown may be old. Soon the page tries again.';
  if (live.phase === 'live' && live.leader !== '0') return 'The node gets nothing new from its leader: what is shown may be old, until it is caught up.';
  if (live.phase === 'live') return 'The node has no leader in sight: what is shown stays as it was, and writes wait.';
  if (live.phase === 'stopped') return `${sentence(live.why)}${wider(live)}`;
  const next = live.phase === 'waiting' ? ` Next try in ${Math.max(1, Math.ceil((live.retryAt - Date.now()) / 1000))} s.` : ' Trying…';
  return sentence(live.why) + next;
}

const sentence = (text) => `${text.replace(/\.$/, '')}.`.replace(/^./, (first) => first.toUpperCase());

/** Who may read a part alone asks for all by mistake. */
function wider(live) {
  const prefix = page.rights.prefix(live.namespace);
  return live.refused === 403 && prefix && prefix !== live.prefix ? ` You may read what begins with ${prefix}: give that as the prefix.` : '';
}

/** Only what is another is written, so that it is not read out each second, and its buttons stay. */
function staleText(box, old, why) {
  const others = elsewhere();
  const key = `${page.live.phase} ${others.length} ${location.hash}`;
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    const again = page.live.phase === 'stopped' ? begin : () => page.live.now();
    fill(box, h('strong', { 'aria-hidden': 'true' }), h('span', null), page.live.phase === 'live' ? '' : button('Try now', begun ? again : begin), others);
  }
  say(box.children[0], old);
  say(box.children[1], why);
}

/** A page may call the node alone that it came from: at another one, its own console goes on. */
function elsewhere() {
  if (page.live.phase === 'stopped') return [];
  const members = (page.status?.members ?? []).filter((it) => it.client_address);
  const others = members.filter((it) => String(it.id) !== String(page.live.node));
  if (!others.length) return [];
  const ports = new Set(members.map((it) => it.client_address.split(':').pop()));
  // Where all nodes have the same ports for clients, they mostly have the same for this, too.
  const host = (it) => it.client_address.replace(/:\d+$/, '');
  const name = (it) => {
    const port = location.port && `:${location.port}`;
    return ports.size > 1 ? `node ${it.id} (${host(it)})` : outward(`${location.protocol}//${host(it)}${port}/console/${location.hash}`, `node ${it.id} (${host(it)})`);
  };
  return [h('span', { class: 'others' }, 'Or go on at the console of ', others.flatMap((it, at) => [at > 0 && ', ', name(it)]), '.')];
}

// ---- Keyboard

const KEYS = [
  ['/', 'Search'], ['j k', 'The next, the one before'], ['Enter', 'Open'], ['Esc', 'Leave the search, close, or go up'],
  ['1 – 7', 'The views, in their order'], ['p', 'Pause the live log'], ['t', 'Light, dark, or as the system'], ['?', 'This'],
];

function help() {
  const dialog = h('dialog', { 'aria-labelledby': 'keys', onclose: () => dialog.remove() },
    h('h2', { id: 'keys' }, 'Keyboard'),
    h('dl', { class: 'facts keys' }, KEYS.map(([key, what]) => h('div', null, h('dt', null, h('kbd', null, key)), h('dd', null, what)))),
    h('div', { class: 'buttons' }, button('Close', () => dialog.close())));
  document.body.append(dialog);
  dialog.showModal();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  const { target, key } = event;
  const typing = target.matches('input, select, textarea');
  if (typing) {
    if (key === 'Escape') target.blur();
    if (key === 'Enter' && target === view?.search && view.list) view.list.choose(0);
    return;
  }
  const run = keys(key, target);
  if (run) {
    event.preventDefault();
    run();
  }
}

function keys(key, target) {
  const { list } = view ?? {};
  if (key === '/' && view?.search) return () => view.search.select();
  if (key === '?') return help;
  if (key === 't') return nextTheme;
  if (/^[1-7]$/.test(key) && begun) return () => (location.hash = page.place(NAV[key - 1][0]));
  if (key === 'Escape' && view?.up) return () => (location.hash = view.up);
  if (list && (key === 'j' || key === 'ArrowDown')) return () => list.move(1);
  if (list && (key === 'k' || key === 'ArrowUp')) return () => list.move(-1);
  if (list && key === 'Enter' && !target.matches('a, button')) return () => list.open();
  return view?.keys?.[key];
}

// ---- Light and dark

function theme(name) {
  if (name === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  say(byId('theme'), { auto: '◐', light: '☀', dark: '☾' }[name]);
  byId('theme').title = `${THEMES[name]} (t)`;
  byId('theme').setAttribute('aria-label', THEMES[name]);
  localStorage.setItem('quorate.theme', name);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = localStorage.getItem('quorate.theme') ?? 'auto';
  const next = names[(names.indexOf(now) + 1) % names.length];
  theme(next);
  toast(THEMES[next]);
}

// ---- Begin

const kept = localStorage.getItem('quorate.theme');
theme(Object.hasOwn(THEMES, kept) ? kept : 'auto');
fill(byId('nav'), NAV.map(([name, label]) => h('a', { href: '#', 'data-view': name }, label)));
byId('theme').addEventListener('click', nextTheme);
byId('help').addEventListener('click', help);
addEventListener('hashchange', () => {
  route();
  byId('main').focus({ preventScroll: true });
});
addEventListener('keydown', pressed);
addEventListener('online', () => page.live.now());
addEventListener(FORBIDDEN, readRights);
setInterval(tell, 1_000);
setInterval(() => !document.hidden && (view?.status || !page.live.isLive) && readStatus(), STATUS_MS);
begin();
