// What several views show.

import { fill, h } from '../dom.js';
import { shown } from '../shapes.js';

const TONES = { UP: 'good', PASSING: 'good', STARTING: 'warn', DRAINING: 'warn', UNKNOWN: 'calm', OUT_OF_SERVICE: 'off', CRITICAL: 'bad' };

/** A status or health: its word, and a dot for the eye. */
export const mark = (word) => (word ? h('span', { class: `mark ${TONES[word] ?? 'calm'}` }, shown(word)) : '');

/** A number that says nothing when it is 0. */
export const some = (number) => (number ? String(number) : '–');

/** What stands where there is nothing yet. */
export const unread = (page) => (page.live.phase === 'stopped' ? 'This cannot be read.' : 'Reading…');

/** A heading, with what stands beside it. */
export const title = (text, ...beside) => h('div', { class: 'title' }, h('h1', null, text), beside);

export const section = (head, ...children) => h('section', null, h('h2', null, head), children);

export function search(label, onInput) {
  return h('input', { type: 'search', class: 'search', placeholder: label, 'aria-label': label, 'aria-keyshortcuts': '/', autocomplete: 'off', spellcheck: 'false', oninput: onInput });
}

export function select(label, options, onChange) {
  const items = options.map(([value, text]) => h('option', { value }, text));
  return h('select', { 'aria-label': label, onchange: onChange }, items);
}

/** What tells a link or button from others: those of rows say the same, and have a label that names their row. */
const nameOf = (it) => it.getAttribute('aria-label') ?? it.textContent;

/** A part of a view that is only built anew where what it shows is another. */
export function part(name) {
  const root = h('div', { class: name });
  let last;
  return {
    root,
    show(facts, build) {
      const now = JSON.stringify(facts);
      if (now === last) return;
      last = now;
      // What the keyboard is on stays so.
      const on = root.contains(document.activeElement) ? nameOf(document.activeElement) : null;
      fill(root, build());
      if (on) [...root.querySelectorAll('a, button')].find((it) => nameOf(it) === on)?.focus({ preventScroll: true });
    },
  };
}
