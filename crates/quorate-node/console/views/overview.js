// How the cluster is, in one sentence, and what needs attention.

import { facts, h } from '../dom.js';
import { count, many, time } from '../format.js';
import { protection, verdict } from '../verdict.js';
import { part, section, title, unread } from './parts.js';

const LISTED_MAX = 12;
const ENDED_WITHIN_MS = 10 * 60_000;

export function overview(page) {
  const health = part('verdict');
  const figures = part('numbers');
  const attention = part('attention');
  const guard = part('guard');
  const root = h('div', { class: 'view' }, title('Overview'), health.root, figures.root,
    section('Needs attention', attention.root), section('Protection', guard.root));
  return { title: 'Overview', root, status: true, update };

  function update() {
    const { status } = page;
    const judged = status ? verdict(status) : { health: '…', meaning: page.statusFault || 'The node has not answered yet.', next: '' };
    health.show([judged, page.statusFault], () => sentence(judged, page.statusFault));
    if (status) {
      const shown = numbers(status);
      figures.show(shown, () => facts(shown, 'figures'));
      guard.show(protection(status), () => h('p', null, protection(status)));
    }
    const needs = wants(page);
    attention.show([needs, page.live.loaded, unread(page)], () => list(needs, page));
  }
}

function sentence({ health, meaning, next }, fault) {
  const tone = { OK: 'good', DEGRADED: 'warn', 'NO WRITES': 'bad', 'NO QUORUM': 'bad' }[health] ?? 'calm';
  return [
    h('p', { class: `sentence ${tone}` }, h('strong', null, health), ' ', meaning),
    next && h('p', { class: 'next' }, next),
    fault && health !== '…' && h('p', { class: 'problem' }, `This is what the node said last. Now: ${fault}.`),
  ];
}

function numbers(status) {
  const { header } = status;
  const lags = status.members.filter((it) => it.reachable && !status.partial && it.lag !== undefined).map((it) => Number(it.lag));
  const whole = (number) => (status.partial || number === undefined ? '' : count(number));
  const leader = String(header.leader_id ?? '0');
  return [
    ['Leader', leader === '0' ? 'none' : `node ${leader}`],
    ['Term', header.term && count(header.term)],
    ['Revision', header.revision && count(header.revision)],
    ['Services', whole(status.services)],
    ['Instances', whole(status.instances)],
    ['Leases', whole(status.leases)],
    ['Greatest lag', lags.length ? many(Math.max(...lags), 'entry').replace('entrys', 'entries') : ''],
    ['Level', status.level && `${status.level}${status.level_held ? ', held' : ''}`],
    ['Answered by', header.node_id && `node ${header.node_id}`],
  ];
}

/** What an operator should look at, each with a place. */
function wants(page) {
  const found = [];
  const sums = { critical: 0, draining: 0, out_of_service: 0, starting: 0 };
  for (const service of page.live.copy.services.values()) {
    const sum = service.summary;
    for (const key of Object.keys(sums)) sums[key] += sum[key];
    if (sum.instances > 0 && sum.usable === 0) {
      found.push([Infinity, 'bad', sum.name, `no usable instance of ${sum.instances}`, page.place('service', sum.name)]);
    } else if (sum.critical > 0) {
      found.push([sum.critical / sum.instances, 'warn', sum.name, `${sum.critical} of ${sum.instances} critical`, page.place('service', sum.name)]);
    }
  }
  found.sort(([a], [b]) => (a === b ? 0 : b - a));
  const others = found.length - LISTED_MAX;
  found.splice(LISTED_MAX);
  if (others > 0) found.push([0, 'warn', 'Services', `${others} more with critical instances`, page.place('services')]);
  for (const key of ['draining', 'out_of_service', 'starting']) {
    if (sums[key]) found.push([0, 'calm', 'Instances', `${many(sums[key], 'instance')} ${key.replaceAll('_', ' ')}`, page.place('services')]);
  }
  const since = Date.now() - ENDED_WITHIN_MS;
  const ended = page.live.copy.changes.newest((it) => it.what === 'expired' && it.at > since);
  if (ended.length) found.push([0, 'warn', 'Leases', `${many(ended.length, 'lease')} ended in the last 10 minutes, the last one of ${ended[0].service}/${ended[0].id} at ${time(ended[0].at)}`, page.place('log')]);
  return found;
}

function list(needs, page) {
  if (!page.live.loaded) return h('p', { class: 'none' }, unread(page));
  if (!needs.length) return h('p', { class: 'none' }, 'Nothing in this namespace: every service has usable instances.');
  const line = ([, tone, what, text, href]) => h('li', { class: tone }, h('a', { href }, what), h('span', null, text));
  return h('ul', { class: 'needs' }, needs.map(line));
}
