// A list of any length: only the rows in sight are there, and rows that leave at one end come in again at the other.

import { fill, h, say } from './dom.js';

const SPARE = 8;

export class List {
  /**
   * `columns`: what each is called (`head`), its class (`name`), its content (`show(item)`: a text or nodes), and how it is
   * sorted (`sort(item)`), if it can be. `place(item)`: where a row leads, or nothing. `key(item)`: what tells it from others.
   */
  constructor({ label, name, columns, place, key, none }) {
    Object.assign(this, { columns, place, key, none });
    this.items = [];
    this.shown = [];
    this.chosen = null;
    this.order = { column: null, down: false };
    this.pool = [];
    this.heads = columns.map((column) => this.head(column));
    this.spacer = h('div', { class: 'spacer', role: 'presentation' });
    this.empty = h('p', { class: 'none', hidden: true });
    this.scroll = h('div', { class: 'scroll', role: 'rowgroup', tabindex: 0, 'aria-label': label, onscroll: () => this.draw() }, this.spacer);
    this.root = h('div', { class: `list ${name}`, role: 'table', 'aria-label': label },
      h('div', { role: 'rowgroup', class: 'heads' }, h('div', { class: 'row head', role: 'row', 'aria-rowindex': 1 }, this.heads)),
      this.scroll);
    this.outer = h('div', { class: 'outer' }, this.root, this.empty);
    this.watcher = new ResizeObserver(() => this.measure());
    this.watcher.observe(this.scroll);
  }

  head(column) {
    const cell = h('div', { role: 'columnheader', class: `cell ${column.name}` });
    if (!column.sort) return fill(cell, column.head);
    return fill(cell, h('button', { type: 'button', onclick: () => this.sortBy(column) }, column.head));
  }

  sortBy(column) {
    const { order } = this;
    if (order.column !== column) this.order = { column, down: false };
    else this.order = order.down ? { column: null, down: false } : { column, down: true };
    for (const [at, each] of this.columns.entries()) {
      const is = each === this.order.column;
      this.heads[at].setAttribute('aria-sort', is ? (this.order.down ? 'descending' : 'ascending') : 'none');
    }
    this.set(this.items);
  }

  set(items) {
    this.items = items;
    this.shown = this.sorted();
    this.root.setAttribute('aria-rowcount', this.shown.length + 1);
    this.empty.hidden = this.shown.length > 0;
    say(this.empty, this.shown.length ? '' : this.none());
    this.measure();
  }

  sorted() {
    const { column, down } = this.order;
    if (!column) return this.items;
    const sign = down ? -1 : 1;
    return [...this.items].sort((a, b) => {
      const [left, right] = [column.sort(a), column.sort(b)];
      return sign * (typeof left === 'number' ? left - right : left < right ? -1 : left > right ? 1 : 0);
    });
  }

  /** How tall a row is stands in the style, and differs by the width of the page. */
  measure() {
    const tall = parseFloat(getComputedStyle(this.root).getPropertyValue('--row'));
    this.tall = tall > 0 ? tall : 32;
    this.height = this.scroll.clientHeight;
    this.spacer.style.height = `${this.shown.length * this.tall}px`;
    this.draw();
  }

  draw() {
    if (!this.tall) return;
    const need = Math.ceil(this.height / this.tall) + 2 * SPARE;
    while (this.pool.length < need) this.pool.push(this.blank());
    const size = this.pool.length;
    const first = Math.max(0, Math.min(Math.floor(this.scroll.scrollTop / this.tall) - SPARE, this.shown.length - size));
    for (let at = first; at < first + size; at += 1) this.put(this.pool[at % size], at);
  }

  blank() {
    const cells = this.columns.map((column) => h('div', { class: `cell ${column.name}`, role: 'cell', 'data-head': column.head }));
    const row = { at: -1, item: null, cells, link: null };
    row.root = h('div', { class: 'row', role: 'row', hidden: true, onclick: (event) => this.clicked(event, row) }, cells);
    this.spacer.append(row.root);
    return row;
  }

  put(row, at) {
    const item = this.shown[at];
    if (!item) {
      row.root.hidden = true;
      row.item = null;
      return;
    }
    if (row.at !== at || row.root.hidden) {
      // The keyboard is not to be on a row that has become another one.
      if (row.root.contains(document.activeElement)) this.scroll.focus({ preventScroll: true });
      row.at = at;
      row.root.style.transform = `translateY(${at * this.tall}px)`;
      row.root.setAttribute('aria-rowindex', at + 2);
      row.root.hidden = false;
    } else if (row.tall !== this.tall) {
      row.root.style.transform = `translateY(${at * this.tall}px)`;
    }
    row.tall = this.tall;
    if (row.item !== item) this.write(row, item);
    row.root.classList.toggle('chosen', this.chosen !== null && this.key(item) === this.chosen);
    row.root.classList.toggle('odd', at % 2 === 1);
  }

  write(row, item) {
    row.item = item;
    const place = this.place?.(item);
    for (const [at, column] of this.columns.entries()) {
      const content = column.show(item);
      const cell = row.cells[at];
      if (at === this.linked && place) {
        row.link ??= h('a', { href: '#', tabindex: -1 });
        row.link.setAttribute('href', place);
        say(row.link, content);
        if (row.link.parentNode !== cell) fill(cell, row.link);
      } else if (typeof content === 'string') {
        say(cell, content);
      } else {
        fill(cell, content);
      }
      if (column.title !== false) cell.title = cell.textContent;
    }
  }

  /** Writes a column anew: what it shows is another, and the items are the same. */
  again(head) {
    const at = this.columns.findIndex((column) => column.head === head);
    for (const row of at < 0 ? [] : this.pool) {
      if (row.item) say(row.cells[at], this.columns[at].show(row.item));
    }
  }

  get linked() {
    return Math.max(0, this.columns.findIndex((column) => column.link));
  }

  clicked(event, row) {
    if (event.target.closest('a, button') || String(getSelection())) return;
    this.choose(row.at);
    this.open();
  }

  choose(at) {
    const item = this.shown[at];
    if (!item) return;
    this.chosen = this.key(item);
    const top = at * this.tall;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    if (top + this.tall > this.scroll.scrollTop + this.height) this.scroll.scrollTop = top + this.tall - this.height;
    this.draw();
    const row = this.pool.find((each) => each.at === at && !each.root.hidden);
    (row?.link ?? this.scroll).focus({ preventScroll: true });
  }

  get at() {
    return this.chosen === null ? -1 : this.shown.findIndex((item) => this.key(item) === this.chosen);
  }

  move(by) {
    this.choose(Math.max(0, Math.min(this.shown.length - 1, this.at + by)));
  }

  /** Goes where the chosen row leads. */
  open() {
    const item = this.shown[this.at];
    const place = item && this.place?.(item);
    if (place) location.hash = place;
    return Boolean(place);
  }

  close() {
    this.watcher.disconnect();
  }
}
