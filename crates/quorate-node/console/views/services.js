// All services of the namespace.

import { h, say } from '../dom.js';
import { count, many, time } from '../format.js';
import { List } from '../list.js';
import { search, select, some, title, unread } from './parts.js';

const FILTERS = {
  all: ['All services', () => true],
  empty: ['Without a usable instance', (it) => it.usable === 0],
  critical: ['With critical instances', (it) => it.critical > 0],
  draining: ['With draining instances', (it) => it.draining > 0],
  out: ['With instances out of service', (it) => it.out_of_service > 0],
  starting: ['With starting instances', (it) => it.starting > 0],
  overridden: ['With overrides', (it) => it.overridden > 0],
};

export function services(page) {
  const kept = page.kept('services', { text: '', filter: 'all' });
  const list = new List({
    label: 'Services', name: 'services', key: (it) => it.name, place: (it) => page.place('service', it.name),
    none: () => (page.live.loaded ? 'No service passes.' : unread(page)),
    columns: [
      { head: 'Service', name: 'grow id', link: true, show: (it) => it.name, sort: (it) => it.name },
      { head: 'Usable', name: 'number usable', show: (it) => usable(it), sort: (it) => it.usable },
      { head: 'Up', name: 'number wide', show: (it) => count(it.up), sort: (it) => it.up },
      { head: 'Instances', name: 'number wide', show: (it) => count(it.instances), sort: (it) => it.instances },
      { head: 'Critical', name: 'number wide', show: (it) => some(it.critical), sort: (it) => it.critical },
      { head: 'Draining', name: 'number wide', show: (it) => some(it.draining), sort: (it) => it.draining },
      { head: 'Out', name: 'number wide', show: (it) => some(it.out_of_service), sort: (it) => it.out_of_service },
      { head: 'Zones', name: 'zones wide', show: (it) => it.zones, sort: (it) => it.zones },
      { head: 'Last change', name: 'changed', show: (it) => changed(it), sort: (it) => Number(it.revision), title: false },
    ],
  });
  const text = search('Search services, zones', () => keep('text', text.value));
  const filter = select('Which services', Object.entries(FILTERS).map(([key, [label]]) => [key, label]), () => keep('filter', filter.value));
  text.value = kept.text;
  filter.value = kept.filter;
  const sum = h('p', { class: 'sum', role: 'status' });
  const root = h('div', { class: 'view tall' }, title('Services', sum), h('div', { class: 'filters' }, text, filter), list.outer);
  return { title: 'Services', root, list, search: text, update, close: () => list.close() };

  function keep(name, value) {
    kept[name] = value;
    update();
    list.scroll.scrollTop = 0;
  }

  function update() {
    const wanted = text.value.trim().toLowerCase();
    const passes = FILTERS[filter.value][1];
    const all = [...page.live.copy.services.values()].filter((it) => it.instances.size > 0 || it.changedAt > 0).map((it) => it.summary);
    const found = all.filter((it) => `${it.name} ${it.zones}`.toLowerCase().includes(wanted) && passes(it));
    found.sort((a, b) => (a.name < b.name ? -1 : 1));
    list.set(found);
    const some = found.length === all.length ? '' : `${count(found.length)} of `;
    say(sum, page.live.loaded ? `${some}${many(all.length, 'service')}, ${many(page.live.copy.size, 'instance')}` : '');
  }
}

function usable(it) {
  const tone = it.instances === 0 ? 'calm' : it.usable === 0 ? 'bad' : it.usable < it.instances ? 'warn' : 'good';
  return h('span', { class: `mark ${tone}` }, `${count(it.usable)} of ${count(it.instances)}`);
}

function changed(it) {
  return [h('span', { class: 'revision' }, `r${it.revision}`), it.at ? h('span', { class: 'quiet' }, ` ${time(it.at)}`) : ''];
}
