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
  const timer = setInterval(reread, READ_EVERY_MS);
  reread();
  return { title: 'Overrides', root, update, close: () => clearInterval(timer) };

  async function reread() {
    try {
      found = await all(page.namespace);
      fault = '';
    } catch (error) {
      fault = error.message;
    }
    draw();
  }

  /** After each change that the page sees: it may be one of these. */
  function update() {
    if (seen === page.live.copy.changes.total) return;
    seen = page.live.copy.changes.total;
    reread();
  }

  function draw() {
    sum.textContent = found ? many(found.length, 'override') : '';
    body.show([found, fault], () => shown(page, found, fault));
  }
}

async function all(namespace) {
  const found = [];
  let after = '';
  for (let pages = 0; pages < PAGES_MAX; pages += 1) {
    const answer = await call('GET', path(namespace, 'overrides') + after);
    found.push(...(answer.overrides ?? []));
    if (!answer.next) break;
    after = `?after_service=${encodeURIComponent(answer.next.service)}&after_id=${encodeURIComponent(answer.next.id)}`;
  }
  return found.map((it) => ({ ...it, namespace, override: decision(it.override ?? {}) }));
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
