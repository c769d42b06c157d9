// One service: its instances, who requires it, and who watches it at this node.

import { choose } from '../actions.js';
import { call, path } from '../api.js';
import { button, fill, h, outward, say } from '../dom.js';
import { count, duration, many, roughly } from '../format.js';
import { List } from '../list.js';
import { isName } from '../shapes.js';
import { mark, part, search, select, some, title, unread } from './parts.js';

const FILTERS = [['', 'Every status'], ['UP', 'Up'], ['STARTING', 'Starting'], ['DRAINING', 'Draining'], ['OUT_OF_SERVICE', 'Out of service'], ['CRITICAL', 'Critical'], ['overridden', 'Overridden']];

export function service(page, [name]) {
  const kept = page.kept(`service ${name}`, { text: '', filter: '' });
  const mayAct = page.rights.may('operator', page.namespace, name);
  const list = new List({
    label: `Instances of ${name}`, name: mayAct ? 'instances acting' : 'instances', key: (it) => it.id, place: (it) => page.place('instance', name, it.id),
    none: () => (page.live.loaded ? 'No instance passes.' : unread(page)), columns: columns(mayAct && page.rights, (it) => watched.left(it)),
  });
  const text = search('Search ids, endpoints, tags, metadata …', () => keep('text', text.value));
  const filter = select('Which instances', FILTERS, () => keep('filter', filter.value));
  text.value = kept.text;
  filter.value = kept.filter;
  const sum = h('p', { class: 'sum', role: 'status' });
  const needs = part('needs-line');
  const graph = h('a', { href: page.place('graph', name) }, 'Dependencies');
  const watched = inspected(page, name, () => list.again('Lease left'));
  const root = h('div', { class: 'view tall' }, title(name, sum), needs.root, watched.root, h('div', { class: 'filters' }, text, filter, graph), list.outer);
  return { title: name, root, list, search: text, update, close, up: page.place('services') };

  function close() {
    list.close();
    watched.close();
  }

  function keep(field, value) {
    kept[field] = value;
    update();
    list.scroll.scrollTop = 0;
  }

  function update() {
    const service = page.live.copy.services.get(name);
    const all = service ? [...service.instances.values()] : [];
    all.sort((a, b) => (a.id < b.id ? -1 : 1));
    const wanted = text.value.trim().toLowerCase();
    list.set(all.filter((it) => fits(it, filter.value) && (!wanted || haystack(it).includes(wanted))));
    say(sum, told(page, service));
    const links = relations(page, name, all);
    needs.show(links, () => links.map(([head, names]) => line(page, head, names)));
  }
}

function told(page, service) {
  if (!page.live.loaded) return '';
  if (!service) return 'No such service is registered.';
  const { instances, usable, up, critical, revision } = service.summary;
  return `${count(usable)} usable of ${many(instances, 'instance')}: ${count(up)} up, ${count(critical)} critical; revision ${revision}`;
}

function fits(it, filter) {
  if (!filter) return true;
  if (filter === 'CRITICAL') return it.health === filter;
  return filter === 'overridden' ? Boolean(it.override) : it.status === filter;
}

/** All of an instance that is searched, made once for each. */
const searched = new WeakMap();
function haystack(it) {
  if (!searched.has(it)) {
    const texts = [it.id, it.zone, it.version, it.status, it.health, it.health_reason, it.override?.reason, it.tags, Object.entries(it.endpoints), Object.entries(it.metadata)];
    searched.set(it, texts.flat(2).filter(Boolean).join('\n').toLowerCase());
  }
  return searched.get(it);
}

const pairs = (map) => Object.entries(map).map(([key, value]) => `${key}=${value}`).join(', ');

/** `rights`: of those who may act. */
function columns(rights, left) {
  return [
    { head: 'Instance', name: 'grow id', link: true, show: (it) => it.id, sort: (it) => it.id },
    { head: 'Status', name: 'status', show: (it) => [mark(it.status), it.override && h('span', { class: 'by', title: 'An operator overrides it' }, ' overridden')], sort: (it) => it.status },
    { head: 'Health', name: 'health', show: (it) => [mark(it.health), it.health_reason && h('span', { class: 'why' }, ` ${it.health_reason}`)], sort: (it) => it.health },
    { head: 'Endpoints', name: 'grow endpoints wide', show: (it) => endpoints(it) },
    { head: 'Zone', name: 'zone', show: (it) => it.zone ?? '', sort: (it) => it.zone ?? '' },
    { head: 'Version', name: 'version wide', show: (it) => it.version ?? '', sort: (it) => it.version ?? '' },
    { head: 'Weight', name: 'number wide', show: (it) => some(Number(it.weight)), sort: (it) => Number(it.weight) },
    { head: 'Tags', name: 'tags wider', show: (it) => it.tags.join(', ') },
    { head: 'Metadata', name: 'metadata wider', show: (it) => pairs(it.metadata) },
    rights && { head: 'Lease left', name: 'number left wider', show: (it) => left(it), title: false },
    { head: 'Incarnation', name: 'incarnation wider', show: (it) => String(it.incarnation ?? ''), sort: (it) => Number(it.incarnation) },
    rights && { head: 'Do', name: 'do wide', show: (it) => button('Do…', () => choose(rights, it), { 'aria-label': `Do something to ${it.id}` }), title: false },
  ].filter(Boolean);
}

/** Addresses are links where they are of the web. */
export function endpoints(it) {
  return Object.entries(it.endpoints).flatMap(([, uri], at) => [at > 0 && ', ', outward(uri)]);
}

/** What it requires, and who requires it, as far as this page sees. */
function relations(page, name, all) {
  const by = [...new Set(page.live.copy.dependents(name).map((it) => it.service))].sort();
  const needs = [...new Set(all.flatMap((it) => it.requires))].sort();
  return [['Required by', by], ['Requires', needs]];
}

const NAMED_MAX = 20;

function line(page, head, names) {
  const links = names.slice(0, NAMED_MAX).flatMap((name, at) => [at > 0 && ', ', h('a', { href: page.place('service', name) }, name)]);
  const more = names.length > NAMED_MAX && ` and ${names.length - NAMED_MAX} more`;
  return fill(h('p', null), h('span', { class: 'quiet' }, `${head}: `), names.length ? [links, more] : 'none');
}

const INSPECT_MS = 5_000;
/** Leases that have less end about now, unless they are renewed. */
const SOON_MS = 3_000;

/** What this node alone knows of a service, for callers that may ask: who watches it here, and how long its leases have. */
function inspected(page, name, changed) {
  const lines = part('needs-line');
  let leases = new Map();
  const ask = async () => {
    if (document.hidden) return;
    let told;
    try {
      const answer = await call('GET', path(page.namespace, 'services', name, 'inspection'));
      leases = new Map(answer.leases.map((it) => [it.id, it.left_ms]));
      told = inspection(answer);
      changed();
    } catch (error) {
      told = [['Watched at this node by', `unknown: ${error.message}`]];
    }
    lines.show(told, () => told.map(([head, what]) => h('p', null, h('span', { class: 'quiet' }, `${head}: `), what)));
  };
  const timer = isName(name) && page.rights.may('operator', page.namespace, name) && setInterval(ask, INSPECT_MS);
  if (timer) ask();
  const left = (it) => (leases.has(it.id) ? roughly(leases.get(it.id)) : '–');
  return { root: lines.root, left, close: () => clearInterval(timer) };
}

function inspection({ watchers, watchers_in_all: all, leads, leases }) {
  const waits = (it) => (it.behind ? ', far behind' : it.queued > 0 ? `, ${many(it.queued, 'change')} behind` : '');
  const one = (it) => `${it.address || 'somebody'} up to revision ${it.sent_revision}${waits(it)}`;
  const some = watchers.slice(0, NAMED_MAX).map(one).join('; ');
  const more = all > NAMED_MAX ? ` and ${count(all - NAMED_MAX)} more` : '';
  const least = leases.reduce((found, it) => Math.min(found, it.left_ms), Infinity);
  const soon = leases.filter((it) => it.left_ms < SOON_MS).length;
  const ending = soon > 0 ? `${duration(least)}; ${many(soon, 'lease')} of less than ${duration(SOON_MS)}` : duration(least);
  return [
    ['Watched at this node by', some ? some + more : 'nobody'],
    leads && leases.length > 0 && ['Least left of a lease', ending],
    !leads && ['How long leases have', 'the node that leads knows it'],
  ].filter(Boolean);
}
