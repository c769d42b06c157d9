// Which service requires which, as their instances declare it: a drawing, and the same as a table.

import { h, s, table } from '../dom.js';
import { many } from '../format.js';
import { BOX, layout } from '../layout.js';
import { part, title, unread } from './parts.js';

/** More boxes say nothing to anybody: one service and its surroundings are shown instead. */
const BOXES_MAX = 80;
const LABEL_MAX = 18;

export function graph(page, [focus]) {
  const body = part('body');
  const sum = h('p', { class: 'sum', role: 'status' });
  const root = h('div', { class: 'view' }, title('Dependencies', sum), body.root);
  let placed = false;
  return { title: 'Dependencies', root, update, up: focus && page.place('graph') };

  function update() {
    const all = edges(page.live.copy);
    const near = focus ? around(all, focus) : all;
    const names = [...new Set(near.flat().concat(focus ? [focus] : []))].sort();
    sum.textContent = page.live.loaded ? `${many(near.length, 'requirement')} between ${many(names.length, 'service')}${focus ? ` around ${focus}` : ''}` : '';
    const states = names.map((name) => state(page.live.copy, name));
    body.show([names, near, states, page.live.loaded, page.live.phase], () => shown(page, names, near, states, focus));
    const box = placed ? null : root.querySelector('.box.focus');
    box?.scrollIntoView({ block: 'nearest', inline: 'center' });
    placed ||= Boolean(box);
  }
}

function edges(copy) {
  const found = [];
  for (const service of copy.services.values()) {
    const needs = new Set();
    for (const instance of service.instances.values()) for (const name of instance.requires) needs.add(name);
    for (const name of needs) found.push([service.name, name]);
  }
  return found.sort(([a, b], [c, d]) => (a < c ? -1 : a > c ? 1 : b < d ? -1 : 1));
}

/** All that it needs, and all that need it, over any number of steps. */
function around(all, focus) {
  const kept = new Set();
  for (const [from, to] of [[0, 1], [1, 0]]) {
    const by = Map.groupBy(all, (edge) => edge[from]);
    const seen = new Set([focus]);
    for (const name of seen) {
      for (const edge of by.get(name) ?? []) {
        kept.add(edge);
        seen.add(edge[to]);
      }
    }
  }
  return all.filter((edge) => kept.has(edge));
}

function state(copy, name) {
  const sum = copy.services.get(name)?.summary;
  if (!sum || sum.instances === 0) return ['bad', 'not registered'];
  const tone = sum.usable === 0 ? 'bad' : sum.usable < sum.instances ? 'warn' : 'good';
  return [tone, `${sum.usable} of ${sum.instances} usable`];
}

function shown(page, names, near, states, focus) {
  if (!page.live.loaded) return h('p', { class: 'none' }, unread(page));
  if (!near.length) return h('p', { class: 'none' }, focus ? `No instance of ${focus} requires another service, and none requires it.` : 'No instance says that it requires a service.');
  const told = new Map(names.map((name, at) => [name, states[at]]));
  const big = names.length > BOXES_MAX;
  const link = (name) => h('a', { href: page.place('graph', name) }, name);
  const rows = near.map(([from, to]) => [link(from), link(to), h('span', { class: `mark ${told.get(to)[0]}` }, told.get(to)[1])]);
  return [
    focus && h('p', null, h('a', { href: page.place('service', focus) }, `Instances of ${focus}`), ' · ', h('a', { href: page.place('graph') }, 'All dependencies')),
    big ? h('p', { class: 'none' }, `${names.length} services are too many to draw. Choose one below.`) : drawing(page, names, near, told, focus),
    table('Requirements', ['Service', 'Requires', 'Which has'], rows),
  ];
}

function drawing(page, names, near, told, focus) {
  const { places, lines, width, height } = layout(names, near);
  const edges = near.map(([, to], at) => s('path', { class: `edge ${told.get(to)[0]}${lines[at].back ? ' back' : ''}`, d: lines[at].path, 'marker-end': 'url(#end)' }));
  const end = s('marker', { id: 'end', viewBox: '0 0 8 8', refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' }, s('path', { d: 'M0,1 L8,4 L0,7 Z', class: 'end' }));
  const boxes = names.map((name) => box(page, name, places.get(name), told.get(name), name === focus));
  const svg = s('svg', { width: width + 2, height: height + 2, viewBox: `-1 -1 ${width + 2} ${height + 2}`, 'aria-label': 'Dependencies; the table below says the same', role: 'group' }, s('defs', null, end), edges, boxes);
  return h('div', { class: 'drawing', tabindex: 0, role: 'region', 'aria-label': 'Drawing of the dependencies' }, svg);
}

function box(page, name, { x, y }, [tone, words], isFocus) {
  const label = name.length > LABEL_MAX ? `${name.slice(0, LABEL_MAX - 1)}…` : name;
  return s('a', { href: page.place('graph', name), 'aria-label': `${name}: ${words}` },
    s('title', null, `${name}: ${words}`),
    s('rect', { x, y, width: BOX.width, height: BOX.height, rx: 4, class: `box ${tone}${isFocus ? ' focus' : ''}` }),
    s('circle', { cx: x + 14, cy: y + BOX.height / 2, r: 4, class: `dot ${tone}` }),
    s('text', { x: x + 26, y: y + BOX.height / 2 + 4 }, label));
}
