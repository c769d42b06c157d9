// What can be done to the registry, each with a dialog that says what it does, and asks for the reason where one is kept.

import { Refused, call, path } from './api.js';
import { button, fill, h } from './dom.js';
import { instance, shown } from './shapes.js';

const REASON_MAX = 1024;

let toastTimer;
export function toast(text) {
  const place = document.getElementById('toast');
  place.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => fill(place), 8_000);
}

/** Asks; `run` gets what was given, and says what was done. What is refused is told in the dialog, which stays. */
export function ask({ title, what, fields = [], label, danger, run }) {
  const inputs = fields.map((field) => input(field));
  const problem = h('p', { class: 'problem', role: 'alert', hidden: true });
  const yes = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, label);
  const no = button('Cancel', () => dialog.close());
  const form = h('form', { novalidate: true, onsubmit: (event) => submit(event) },
    h('h2', { id: 'ask' }, title), what.map((line) => h('p', null, line)), inputs.map((it) => it.root), problem,
    h('div', { class: 'buttons' }, no, yes));
  const dialog = h('dialog', { 'aria-labelledby': 'ask', onclose: () => dialog.remove() }, form);
  async function submit(event) {
    event.preventDefault();
    const wrong = inputs.find((it) => it.fault());
    problem.hidden = !wrong;
    if (wrong) {
      problem.textContent = wrong.fault();
      return wrong.input.focus();
    }
    yes.disabled = true;
    try {
      toast(await run(Object.fromEntries(inputs.map((it) => [it.name, it.input.value.trim()]))));
      dialog.close();
    } catch (error) {
      problem.textContent = `${error.code ? `${error.code}: ` : ''}${error.message}`;
      problem.hidden = false;
      yes.disabled = false;
    }
  }
  document.body.append(dialog);
  dialog.showModal();
  (inputs[0]?.input ?? no).focus();
}

function input({ name, label, value = '', fault, hint, number }) {
  const box = h('input', { id: `ask-${name}`, name, value, autocomplete: 'off', inputmode: number && 'numeric', 'aria-describedby': hint && `hint-${name}` });
  const root = h('label', { for: `ask-${name}` }, h('span', null, label), box, hint && h('small', { id: `hint-${name}` }, hint));
  return { name, input: box, root, fault: () => fault?.(box.value.trim()) };
}

const bytes = (text) => new TextEncoder().encode(text).length;

function reasonFault(text) {
  if (!text) return 'Say why, for those who read it later.';
  return bytes(text) > REASON_MAX ? `The reason has ${bytes(text)} bytes; ${REASON_MAX} are the limit.` : '';
}

const reasonField = (value) => ({ name: 'reason', label: 'Reason', value, fault: reasonFault, hint: 'All who read the instance see it.' });

function weightFault(text) {
  return /^\d{1,7}$/.test(text) && Number(text) <= 1_000_000 ? '' : 'The weight is a whole number from 0 to 1,000,000.';
}

const at = (answer) => {
  const revision = answer.header?.revision ?? answer.revision;
  return revision === undefined ? '' : ` at revision ${revision}`;
};

const where = (it, ...more) => path(it.namespace, 'services', it.service, 'instances', it.id, ...more);

/** The override as the API takes it: it is replaced as a whole, so what is not changed is given again. */
function override(it, change) {
  const body = { reason: change.reason };
  const status = change.status ?? it.override?.status;
  const weight = change.weight ?? it.override?.weight;
  if (status) body.status = status;
  if (weight !== null && weight !== undefined) body.weight = weight;
  return body;
}

const decided = ({ status, weight, reason }) =>
  [status && shown(status), weight !== null && `weight ${weight}`, `"${reason}"`].filter(Boolean).join(', ');

/** Fails where somebody has decided otherwise since the dialog was opened: that would be lost unseen. */
async function sameOverride(it) {
  let now;
  try {
    now = instance((await call('GET', where(it))).instance).override;
  } catch (error) {
    // Nobody is registered: only the list of overrides has it.
    if (error.status === 404) return;
    throw error;
  }
  if (JSON.stringify(now) === JSON.stringify(it.override ?? null)) return;
  throw new Refused(409, { detail: `The override was changed meanwhile. Now it is: ${now ? decided(now) : 'none'}. Cancel, and look again.` });
}

function takeOut(it, status, title, what) {
  ask({
    title: `${title} ${it.id}`,
    what: [what, 'It stays so until the override is cleared, also when its process registers again.'],
    fields: [reasonField(it.override?.reason)],
    label: title,
    run: async ({ reason }) => {
      await sameOverride(it);
      const answer = await call('PUT', where(it, 'override'), override(it, { status, reason }));
      return `${it.id} is ${shown(status)}${at(answer)}.`;
    },
  });
}

export const drain = (it) =>
  takeOut(it, 'DRAINING', 'Drain', `${it.service}/${it.id} finishes what it has, and gets no new calls.`);

export const outOfService = (it) =>
  takeOut(it, 'OUT_OF_SERVICE', 'Out of service', `${it.service}/${it.id} gets no calls any more, from now on.`);

export function weigh(it) {
  ask({
    title: `Weight of ${it.id}`,
    what: [`The share of calls that ${it.service}/${it.id} gets, relative to the others; 0: none. Now it is ${it.weight ?? 'as registered'}.`],
    fields: [{ name: 'weight', label: 'Weight', value: String(it.weight ?? ''), number: true, fault: weightFault }, reasonField(it.override?.reason)],
    label: 'Set the weight',
    run: async ({ weight, reason }) => {
      await sameOverride(it);
      const answer = await call('PUT', where(it, 'override'), override(it, { weight: Number(weight), reason }));
      return `The weight of ${it.id} is ${weight}${at(answer)}.`;
    },
  });
}

export function clear(it) {
  ask({
    title: `Clear the override of ${it.id}`,
    what: [`${it.service}/${it.id} is again what it registered itself. The reason of the override was: ${it.override?.reason || 'none'}.`],
    label: 'Clear',
    run: async () => {
      await sameOverride(it);
      return `The override of ${it.id} is cleared${at(await call('DELETE', where(it, 'override')))}.`;
    },
  });
}

export function deregister(it) {
  ask({
    title: `Deregister ${it.id}`,
    what: [`${it.service}/${it.id} leaves the registry at once. If its process lives, it may register again: to keep it out, take it out of service instead.`],
    fields: [{ name: 'id', label: `Type its id to confirm`, fault: (text) => (text === it.id ? '' : 'That is not its id.'), hint: it.id }],
    label: 'Deregister',
    danger: true,
    // This run alone: one that has taken its place meanwhile was not meant.
    run: async () => `${it.id} is deregistered${at(await call('DELETE', `${where(it)}?incarnation=${it.incarnation}`))}.`,
  });
}

export function transfer(member) {
  ask({
    title: `Transfer the lead to node ${member.id}`,
    what: [`Node ${member.id} leads from then on. Writes wait for a moment; nothing is lost.`],
    label: 'Transfer',
    run: async () => {
      const answer = await call('POST', '/api/v1/transfer-leader', { to_id: member.id });
      return `Node ${answer.leader_id ?? member.id} leads.`;
    },
  });
}

export function snapshot(node) {
  ask({
    title: `Snapshot on node ${node}`,
    what: [`Node ${node}, which answers this page, writes a snapshot of its state now, and purges its log behind it.`],
    label: 'Write a snapshot',
    run: async () => {
      const answer = await call('POST', '/api/v1/snapshot', {});
      return `The snapshot covers index ${answer.snapshot_index ?? 'of now'}.`;
    },
  });
}

/** What can be done to an instance, to be chosen. */
export function choose(rights, it) {
  const dialog = h('dialog', { 'aria-labelledby': 'choose', onclose: () => dialog.remove() },
    h('h2', { id: 'choose' }, `${it.service}/${it.id}`),
    h('div', { class: 'buttons', onclick: () => dialog.close() }, buttons(rights, it), button('Cancel', () => dialog.close())));
  document.body.append(dialog);
  dialog.showModal();
}

/** The buttons of an instance: those that its reader has a right to. */
export function buttons(rights, it, registered = true) {
  const may = (role) => rights.may(role, it.namespace, it.service);
  const decided = it.override?.status;
  const found = [];
  const add = (label, run, more) => found.push(button(label, () => run(it), { 'aria-label': `${label}: ${it.service}/${it.id}`, ...more }));
  if (may('operator')) {
    if (decided !== 'DRAINING') add('Drain', drain);
    if (decided !== 'OUT_OF_SERVICE') add('Out of service', outOfService);
    add('Weight', weigh);
    if (it.override) add('Clear override', clear);
  }
  if (registered && may('register')) add('Deregister', deregister, { class: 'danger' });
  return found;
}
