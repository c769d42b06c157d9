// Every change as it comes.

import { button, h, say } from '../dom.js';
import { count, time } from '../format.js';
import { List } from '../list.js';
import { search, title } from './parts.js';

export function log(page) {
  const kept = page.kept('log', { text: '' });
  let paused = null;
  const list = new List({
    label: 'Changes, the newest first', name: 'changes', key: (it) => it.number,
    place: (it) => (it.id ? page.place('instance', it.service, it.id) : null),
    none: () => (text.value ? 'No change passes.' : 'Nothing changed since this page watches.'),
    columns: [
      { head: 'Time', name: 'time', show: (it) => time(it.at) },
      { head: 'Revision', name: 'number wide', show: (it) => it.revision },
      { head: 'Kind', name: 'kind-of', show: (it) => h('span', { class: `kind ${it.kind}` }, it.kind) },
      { head: 'Instance', name: 'grow id', link: true, show: (it) => (it.id ? `${it.service}/${it.id}` : '') },
      { head: 'What', name: 'grow what', show: (it) => it.what },
    ],
  });
  const text = search('Search changes', () => {
    kept.text = text.value;
    draw();
  });
  text.value = kept.text;
  const pause = button('Pause', () => {
    paused = paused ? null : { entries: page.live.copy.changes.newest(), total: page.live.copy.changes.total };
    pause.setAttribute('aria-pressed', paused !== null);
    update();
  }, { 'aria-pressed': 'false', 'aria-keyshortcuts': 'p' });
  const sum = h('p', { class: 'sum', role: 'status' });
  const root = h('div', { class: 'view tall' }, title('Live log', sum), h('div', { class: 'filters' }, text, pause), list.outer);
  return { title: 'Live log', root, list, search: text, update, keys: { p: () => pause.click() }, close: () => list.close() };

  function update() {
    say(pause, paused ? 'Go on' : 'Pause');
    draw();
  }

  function draw() {
    const { changes } = page.live.copy;
    const wanted = text.value.trim().toLowerCase();
    const passes = (it) => !wanted || `${it.kind} ${it.service}/${it.id} ${it.what}`.toLowerCase().includes(wanted);
    const [top, length] = [list.scroll.scrollTop, list.shown.length];
    list.set(paused ? paused.entries.filter(passes) : changes.newest(passes));
    // Who reads further down is not moved.
    const more = list.shown.length - length;
    if (top > 0 && more > 0) list.scroll.scrollTop = top + more * list.tall;
    const waiting = paused ? `, paused: ${count(changes.total - paused.total)} more wait` : '';
    say(sum, `${count(changes.total)} since this page watches${waiting}`);
  }
}
