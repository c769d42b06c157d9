// Who the caller is, and what it may do.

import { token } from '../api.js';
import { button, h, table } from '../dom.js';
import { date } from '../format.js';
import { part, section, title } from './parts.js';

export function me(page) {
  const body = part('body');
  const root = h('div', { class: 'view' }, title('Me'), body.root);
  return { title: 'Me', root, update: () => body.show([page.rights, Boolean(token.get())], () => shown(page)) };
}

function shown(page) {
  const { rights } = page;
  const row = (right) => [right.role, right.namespace && right.namespace !== '*' ? right.namespace : 'all', right.prefix || 'all', right.until_s ? date(right.until_s * 1000) : 'as long as it is granted'];
  return [
    h('p', null, rights.checked ? ['You are ', h('strong', null, rights.principal || 'unnamed'), '.'] : 'This node checks no rights: whoever reaches it may do everything.'),
    rights.checked && section('Rights', rights.rights.length
      ? table('Rights', ['Role', 'Namespace', 'Services that begin with', 'Until'], rights.rights.map(row))
      : h('p', { class: 'none' }, 'None.')),
    section('Token', token.get()
      ? [h('p', null, 'It is kept for this tab, until the tab is closed, and sent to this node alone.'), button('Log out', page.logOut)]
      : [h('p', null, 'This tab has none.'), button('Give a token', page.logIn)]),
  ];
}

/** Asks for a token; `why`: what the node said of the one before. */
export function login(page, why) {
  const input = h('input', { id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true });
  const form = h('form', { class: 'login', novalidate: true, onsubmit: (event) => {
    event.preventDefault();
    if (input.value.trim()) page.useToken(input.value.trim());
  } },
    h('label', { for: 'token' }, h('span', null, 'Token'), input),
    why && h('p', { class: 'problem', role: 'alert' }, why),
    h('p', { class: 'quiet' }, 'It is kept for this tab, until the tab is closed, and sent to this node alone. ', h('code', null, 'quorate token new'), ' makes one.'),
    h('div', { class: 'buttons' }, h('button', { type: 'submit', class: 'primary' }, 'Go on')));
  return { title: 'Token', root: h('div', { class: 'view' }, title('This node checks rights'), form), search: input, update() {}, focus: input };
}
