// The nodes of the cluster.

import { snapshot, transfer } from '../actions.js';
import { button, h, table } from '../dom.js';
import { bytes, count, roughly } from '../format.js';
import { part, section, title } from './parts.js';

export function members(page) {
  const body = part('body');
  const root = h('div', { class: 'view' }, title('Members'), body.root);
  return { title: 'Members', root, status: true, update };

  function update() {
    const { status, statusFault } = page;
    const minute = Math.floor(Date.now() / 60_000);
    body.show([status, statusFault, page.rights.rights, minute], () => shown(page, status, statusFault));
  }
}

const HEADS = ['Node', 'State', 'Term', 'Applied', 'Lag', 'Hash', 'Disk free', 'Version', 'Up', 'Snapshot', 'Certificate', 'Addresses', 'Do'];

function shown(page, status, fault) {
  const told = fault && h('p', { class: 'problem' }, `This is what the node said last. Now: ${fault}.`);
  if (!status) return h('p', { class: 'none' }, fault || 'Reading…');
  const isAdmin = page.rights.may('admin', '');
  const node = status.header.node_id;
  const heads = isAdmin ? HEADS : HEADS.slice(0, -1);
  const rows = status.members.map((it) => row(it, node, isAdmin, status.partial).slice(0, heads.length));
  return [
    told,
    table('Members', heads, rows),
    status.partial && h('p', { class: 'quiet' }, 'More is told to operators, and to those who may read all namespaces.'),
    isAdmin && section('On the command line', h('ul', { class: 'plain' }, LINES.map(([what, line]) => h('li', null, what, ': ', h('code', null, line))))),
  ];
}

const LINES = [
  ['Take a node in', 'quorate cluster add ID PEER-ADDRESS'],
  ['Replace a node', 'quorate cluster replace ID NEW-ID PEER-ADDRESS'],
  ['Take a node out', 'quorate cluster remove ID'],
];

function row(it, node, isAdmin, partial) {
  const { condition } = it;
  const isKnown = it.reachable && !partial;
  const is = (value, show) => (!isKnown || value === undefined || value === null || value === '' ? '–' : show(value));
  const written = condition.snapshot_written_ms;
  return [
    h('strong', null, it.id, String(it.id) === String(node) ? h('span', { class: 'quiet' }, ' answers') : ''),
    state(it),
    is(it.term, count),
    is(it.applied_index, (applied) => (applied === it.last_log_index ? count(applied) : `${count(applied)} of ${count(it.last_log_index)}`)),
    is(it.lag, count),
    is(it.state_hash, (hash) => h('span', { class: 'hash', title: `The hash of its state after entry ${it.state_hash_index}` }, hash.slice(0, 8), h('br'), h('span', { class: 'quiet' }, `at ${count(it.state_hash_index)}`))),
    is(it.disk_free_bytes, (free) => `${bytes(free)}${it.disk_low ? ', LOW' : ''}`),
    is(it.version, String),
    is(it.uptime_ms, roughly),
    is(written, (at) => `${roughly(Date.now() - Number(at))} ago`),
    is(condition.certificate_ends_in_s, (s) => (Number(s) < 0 ? 'ENDED' : roughly(Number(s) * 1000))),
    h('div', { class: 'addresses' }, addresses(it)),
    isAdmin && h('div', { class: 'buttons' }, actions(it, node)),
  ];
}

function state(it) {
  if (!it.reachable) return [h('span', { class: 'mark bad' }, 'down'), it.error && h('div', { class: 'why' }, it.error)];
  const role = it.state === 'learner' ? 'calm' : it.state === 'candidate' ? 'warn' : 'good';
  const word = it.state === 'learner' && it.role === 'learner' ? 'observer' : it.state;
  const why = it.recovering || it.condition.reason;
  return [h('span', { class: `mark ${role}` }, word || it.role), why && h('div', { class: 'why' }, why)];
}

function addresses(it) {
  const told = [['clients', it.client_address], ['peers', it.peer_address]].filter(([, address]) => address);
  return told.map(([who, address]) => h('div', null, h('span', { class: 'quiet' }, `${who} `), address));
}

function actions(it, node) {
  const can = it.reachable && it.role === 'voter' && it.state !== 'leader';
  return [
    can && button('Transfer the lead here', () => transfer(it), { 'aria-label': `Transfer the lead here: node ${it.id}` }),
    String(it.id) === String(node) && button('Snapshot', () => snapshot(it.id), { 'aria-label': `Snapshot: node ${it.id}` }),
  ];
}
