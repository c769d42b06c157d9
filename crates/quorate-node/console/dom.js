// Builds what is shown. What others wrote becomes text, never markup; only addresses of the web become links.

const SVG = 'http://www.w3.org/2000/svg';

/** An element. Attributes that are functions listen; `false` and `null` are left out. */
export function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
export function s(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (name === 'href') element.setAttribute('href', inside(value));
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...present(children));
  return element;
}

/** What replaces the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
  return element;
}

const present = (children) => children.flat(3).filter((it) => it !== null && it !== undefined && it !== false && it !== '');

/** Places of this page alone: all else goes through `outward`. */
function inside(href) {
  if (!href.startsWith('#')) throw new Error(`not a place of this page: ${href}`);
  return href;
}

/** A link where the text is an address of the web, else the text: `javascript:` is a URI, too. */
export function outward(text, label = text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return h('span', null, label);
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') return h('span', null, label);
  const link = h('a', { rel: 'noopener noreferrer', target: '_blank' }, label);
  link.href = url.href;
  return link;
}

export function button(label, run, attributes) {
  return h('button', { type: 'button', onclick: run, ...attributes }, label);
}

/** Sets the text only where it is another one, so that nothing is laid out anew. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Terms and what they stand for; what is nothing is left out. */
export function facts(pairs, name = 'facts') {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== '');
  return h('dl', { class: name }, shown.map(([term, value]) => h('div', null, h('dt', null, term), h('dd', null, value))));
}

/** A small table, whose rows become cards where there is no room. */
export function table(caption, heads, rows) {
  const cell = (it, at) => h(at === 0 ? 'th' : 'td', { 'data-head': heads[at], scope: at === 0 && 'row' }, it);
  return h('div', { class: 'table', tabindex: 0, role: 'region', 'aria-label': caption },
    h('table', null,
      h('caption', { class: 'unseen' }, caption),
      h('thead', null, h('tr', null, heads.map((head) => h('th', { scope: 'col' }, head)))),
      h('tbody', null, rows.map((row) => h('tr', null, row.map(cell))))));
}
