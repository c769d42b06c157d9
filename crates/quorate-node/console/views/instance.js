// One instance: all that is known of it, what can be done to it, and what changed, as far back as its node knows.

import { buttons } from '../actions.js';
import { button, facts, h, outward, table } from '../dom.js';
import { duration, incarnation, time } from '../format.js';
import { history as told } from '../history.js';
import { shown } from '../shapes.js';
import { command } from '../shell.js';
import { mark, part, section, title, unread } from './parts.js';

/** The changes of larger services are read when they are asked for: all of a service come. */
const UNASKED_MAX = 500;

export function instance(page, [service, id]) {
  const head = part('beside');
  const about = part('about');
  const history = part('history');
  const json = part('json');
  const crumb = h('p', { class: 'crumb' }, h('a', { href: page.place('service', service) }, service));
  const root = h('div', { class: 'view' }, crumb, title(id, head.root), about.root,
    section('Changes', history.root), section('As JSON, and as a command', json.root));
  /** What the node has: null until it is read, or asked for; `reading`; or `{ seen, since, whole }`. */
  let before = null;
  return { title: `${service}/${id}`, root, update, up: page.place('service', service) };

  async function read() {
    before = { reading: true };
    const upto = Number(page.live.revision);
    before = await told(page.namespace, service, id, upto).catch((error) => ({ fault: error.message }));
    update();
  }

  function update() {
    const it = page.live.copy.instance(service, id);
    head.show([it?.override, Boolean(it), page.rights.rights], () => h('div', { class: 'buttons' }, it ? buttons(page.rights, it) : []));
    about.show([it, unread(page), page.live.loaded], () => (it ? described(page, it) : missing(page)));
    const seen = page.live.copy.changes.newest((each) => each.service === service && each.id === id, 200);
    const size = page.live.copy.services.get(service)?.instances.size;
    if (!before && page.live.loaded && size <= UNASKED_MAX) read();
    history.show([seen.map((each) => each.number), before], () => changes(both(before?.seen ?? [], seen), before, read));
    json.show(it ?? null, () => (it ? raw(it) : h('p', { class: 'none' }, 'There is nothing to show.')));
  }
}

function missing(page) {
  if (!page.live.loaded) return h('p', { class: 'none' }, unread(page));
  return h('p', { class: 'none' }, 'It is not registered. Its last changes, where the node still has them, stand below.');
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

/** What the node had when the page asked, and what came since; what both have was seen, and so has a time. */
function both(before, seen) {
  const known = new Set(seen.map((it) => it.revision));
  return [...seen, ...before.filter((it) => !known.has(it.revision))].sort((a, b) => Number(b.revision) - Number(a.revision));
}

function changes(seen, before, read) {
  const kind = (it) => h('span', { class: `kind ${it.kind}` }, it.kind);
  const when = (it) => (it.at === null ? 'before' : time(it.at));
  return [
    seen.length > 0 && table('Changes', ['Time', 'Revision', 'Kind', 'What'], seen.map((it) => [when(it), it.revision, kind(it), h('div', { class: 'long' }, it.what)])),
    before ? h('p', { class: 'none' }, oldest(before)) : button('Read what the node still has', read),
  ];
}

/** What there may have been before. */
function oldest({ reading, fault, since, whole }) {
  if (reading) return 'Reading what the node still has…';
  if (fault) return `What was before this page watched is not known: ${fault}.`;
  if (!whole) return 'Not all was read that the node still has.';
  if (since === '0') return 'Nothing was before: the node has every change that there was.';
  return since ? `What was up to revision ${since}, the node no longer has.` : 'The node has no older change of this service.';
}

function raw(it) {
  const text = JSON.stringify(it, null, 2);
  const code = h('pre', { tabindex: 0 }, text);
  const line = h('pre', { tabindex: 0, class: 'command' }, command(it));
  return h('details', null, h('summary', null, 'Show'), copied('Copy', text), code, copied('Copy as CLI command', line.textContent), line);
}

function copied(label, text) {
  const copy = navigator.clipboard && button(label, async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = 'Copied';
  });
  return copy;
}
