// One instance: all that is known of it, what can be done to it, and what changed since the page watches.

import { buttons } from '../actions.js';
import { button, facts, h, outward, table } from '../dom.js';
import { duration, incarnation, time } from '../format.js';
import { shown } from '../shapes.js';
import { mark, part, section, title, unread } from './parts.js';

export function instance(page, [service, id]) {
  const head = part('beside');
  const about = part('about');
  const history = part('history');
  const json = part('json');
  const crumb = h('p', { class: 'crumb' }, h('a', { href: page.place('service', service) }, service));
  const root = h('div', { class: 'view' }, crumb, title(id, head.root), about.root,
    section('Changes since this page watches', history.root), section('As JSON', json.root));
  return { title: `${service}/${id}`, root, update, up: page.place('service', service) };

  function update() {
    const it = page.live.copy.instance(service, id);
    head.show([it?.override, Boolean(it), page.rights.rights], () => h('div', { class: 'buttons' }, it ? buttons(page.rights, it) : []));
    about.show([it, unread(page), page.live.loaded], () => (it ? described(page, it) : missing(page)));
    const seen = page.live.copy.changes.newest((each) => each.service === service && each.id === id, 200);
    history.show(seen.map((each) => each.number), () => changes(seen));
    json.show(it ?? null, () => (it ? raw(it) : h('p', { class: 'none' }, 'There is nothing to show.')));
  }
}

function missing(page) {
  if (!page.live.loaded) return h('p', { class: 'none' }, unread(page));
  return h('p', { class: 'none' }, 'It is not registered. Its last changes, if this page saw them, stand below.');
}

function described(page, it) {
  const decided = it.override;
  return [
    decided && h('p', { class: 'override' }, h('strong', null, 'An operator decided: '), overridden(decided)),
    facts([
      ['Status', mark(it.status)],
      ['Health', it.health && [mark(it.health), it.health_reason && ` ${it.health_reason}`]],
      ['Weight', String(it.weight ?? '')],
      ['Load', it.load ? String(it.load) : ''],
      ['Zone', it.zone],
      ['Version', it.version],
      ['Tags', it.tags.join(', ')],
      ['Requires', it.requires.length ? it.requires.flatMap((name, at) => [at > 0 && ', ', h('a', { href: page.place('service', name) }, name)]) : ''],
      ['Lease', it.lease_id],
      ['Incarnation', incarnation(String(it.incarnation ?? ''))],
      ['Made at', it.create_revision && `revision ${it.create_revision}`],
      ['Changed at', it.modify_revision && `revision ${it.modify_revision}`],
    ]),
    pairs('Endpoints', it.endpoints, outward),
    pairs('Metadata', it.metadata, (text) => text),
    it.checks.length > 0 && section('Health checks', h('ul', { class: 'plain' }, it.checks.map((check) => h('li', null, checked(check))))),
  ];
}

export function overridden(decision) {
  const parts = [decision.status && shown(decision.status), decision.weight !== null && `weight ${decision.weight}`].filter(Boolean);
  return `${parts.join(', ')}. Reason: ${decision.reason || 'none given'}`;
}

function pairs(head, map, show) {
  const entries = Object.entries(map);
  return entries.length > 0 && section(head, facts(entries.map(([key, value]) => [key, show(value)]), 'pairs'));
}

function checked(check) {
  const kind = check.http ? `GET ${check.http.path || '/'}` : check.grpc ? `gRPC health ${check.grpc.service || 'of the server'}` : check.tcp ? 'TCP connection' : 'a check';
  return `${kind} at ${check.endpoint || 'its endpoint'}, every ${duration(check.interval_ms)}, at most ${duration(check.timeout_ms)}; critical after ${check.failures_before_critical}, passing after ${check.successes_before_passing}`;
}

function changes(seen) {
  if (!seen.length) return h('p', { class: 'none' }, 'None. What was before, this page does not know.');
  const kind = (it) => h('span', { class: `kind ${it.kind}` }, it.kind);
  return table('Changes', ['Time', 'Revision', 'Kind', 'What'], seen.map((it) => [time(it.at), it.revision, kind(it), h('div', { class: 'long' }, it.what)]));
}

function raw(it) {
  const text = JSON.stringify(it, null, 2);
  const code = h('pre', { tabindex: 0 }, text);
  const copy = navigator.clipboard && button('Copy', async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = 'Copied';
  });
  return h('details', null, h('summary', null, 'Show'), copy, code);
}
