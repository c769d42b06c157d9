// What operators decided, also of instances that are not registered.

import { buttons } from '../actions.js';
import { call, path } from '../api.js';
import { h, table } from '../dom.js';
import { many } from '../format.js';
import { decision } from '../shapes.js';
import { overridden } from './instance.js';
import { part, title } from './parts.js';

const READ_EVERY_MS = 5_000;
const PAGES_MAX = 20;

export function overrides(page) {
  const body = part('body');
  const sum = h('p', { class: 'sum', role: 'status' });
  const root = h('div', { class: 'view' }, title('Overrides', sum), body.root);
  let found = null;
  let fault = '';
  let seen = -1;
  let reading = false;
  let again = false;
  const timer = setInterval(reread, READ_EVERY_MS);
  reread();
  return { title: 'Overrides', root, update, close: () => clearInterval(timer) };

  /** One at a time: an older list that arrives later would bring back what is cleared. */
  async function reread() {
    again = reading;
    if (reading) return;
    reading = true;
    try {
      found = await all(page.namespace);
      fault = '';
    } catch (error) {
      fault = error.message;
    }
    reading = false;
    draw();
    if (again) reread();
  }

  /** After each change that the page sees: it may be one of these. */
  function update() {
    if (seen === page.live.copy.changes.total) return;
    seen = page.live.copy.changes.total;
    reread();
  }

  function draw() {
    sum.textContent = found ? `${found.more ? 'The first ' : ''}${many(found.length, 'override')}` : '';
    body.show([found, fault], () => shown(page, found, fault));
  }
}

async function all(namespace) {
  const found = [];
  let after = '';
  let next;
  for (let pages = 0; pages < PAGES_MAX; pages += 1) {
    const answer = await call('GET', path(namespace, 'overrides') + after);
    found.push(...(answer.overrides ?? []));
    ({ next } = answer);
    if (!next) break;
    after = `?after_service=${encodeURIComponent(next.service)}&after_id=${encodeURIComponent(next.id)}`;
  }
  const list = found.map((it) => ({ ...it, namespace, override: decision(it.override ?? {}) }));
  return Object.assign(list, { more: Boolean(next) });
}

function shown(page, found, fault) {
  const told = fault && h('p', { class: 'problem' }, fault);
  if (!found) return told || h('p', { class: 'none' }, 'Reading…');
  if (!found.length) return [told, h('p', { class: 'none' }, 'None: every instance is what it registered itself.')];
  const row = (it) => [
    h('a', { href: page.place('instance', it.service, it.id) }, `${it.service}/${it.id}`),
    it.registered ? 'registered' : 'not registered: it waits',
    h('div', { class: 'long' }, overridden(it.override)),
    h('div', { class: 'buttons' }, buttons(page.rights, it, false)),
  ];
  return [told, table('Overrides', ['Instance', 'Now', 'Decision', 'Do'], found.map(row))];
}
