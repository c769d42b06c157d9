// How the cluster is, in one sentence, and what to do about it: as `quorate cluster status` says it.

import { duration } from './format.js';

const LAG_MAX = 5_000;
const CLOCK_HELD_MAX_MS = 5_000;
const CERTIFICATE_ENDS_S = 7 * 86_400;

export function verdict(status) {
  const voters = status.members.filter((it) => it.role === 'voter');
  const silent = voters.filter((it) => !it.reachable).map((it) => it.id).join(', ');
  const answer = voters.filter((it) => it.reachable).length;
  const needed = Math.floor(voters.length / 2) + 1;
  const leader = String(status.header.leader_id ?? '0');
  const of = `${answer} of ${voters.length} voters answer`;
  if (answer < needed) {
    return bad(`${of}, ${needed} are needed: no writes; local reads go on, and nothing expires.`, `Start node ${silent} again.`);
  }
  if (leader === '0') return bad(`No node leads, although ${of}: no writes.`, 'If it stays so for some seconds, the logs of the nodes say why.');
  const none = noWrites(status);
  if (none) return none;
  const [meaning, next] = disagreement(status) ?? disks(status, leader) ?? refused(status) ?? missing(of, silent, answer - needed) ?? single(status) ?? mixed(status) ?? [];
  if (meaning) return { health: 'DEGRADED', meaning, next };
  return { health: 'OK', meaning: `Node ${leader} leads, ${of}.`, next: '' };
}

const AUDIT_NEXT = 'Make room for that file, or let the node write it; it goes on by itself.';
const refusal = (it) => it.condition.writes_refused ?? '';
const why = (it) => it.condition.writes_refused_why ?? '';

/** Every node that answers refuses all writes. */
function noWrites({ members }) {
  const up = members.filter((it) => it.reachable);
  const none = (meaning, next) => ({ health: 'NO WRITES', meaning, next });
  const floor = up.find((it) => refusal(it) === 'disk_floor');
  if (floor) return none(`The disk of node ${floor.id}, which leads, has less free than a quarter of its reserve: nothing is written, and no lease ends.`, 'Make room there; it goes on by itself.');
  if (up.length && up.every((it) => refusal(it) === 'audit')) return none(`Every node that answers refuses writes: ${why(up[0])}`, AUDIT_NEXT);
  return null;
}

function refused({ members }) {
  const find = (reason) => members.find((it) => it.reachable && refusal(it) === reason);
  const [audit, full] = [find('audit'), find('state_full')];
  if (audit) return [`Node ${audit.id} refuses the writes that come to it: ${why(audit)}`, AUDIT_NEXT];
  return full ? [`Registrations are refused, the rest goes on: ${why(full)}`, 'Find out who has so many instances.'] : null;
}

const bad = (meaning, next) => ({ health: 'NO QUORUM', meaning, next });

function disagreement({ members }) {
  const up = members.filter((it) => it.reachable && it.state_hash_index !== undefined);
  for (const a of up) {
    const b = up.find((it) => it.state_hash_index === a.state_hash_index && it.state_hash !== a.state_hash);
    if (b) return [`Nodes ${a.id} and ${b.id} disagree: after the same entries, their states differ.`, 'Keep the data directories of all nodes and report it.'];
  }
  const found = up.find((it) => it.condition.states_differ?.length);
  return found ? [`Nodes ${found.id} and ${found.condition.states_differ[0]} disagree: after the same entries, their states differ.`, 'Keep the data directories of all nodes and report it.'] : null;
}

function disks({ members }, leader) {
  const low = members.filter((it) => it.disk_low).map((it) => it.id);
  if (!low.length) return null;
  const what = low.includes(leader) ? `and node ${leader} leads: no registrations` : 'writes may be refused';
  return [`The disk of node ${low.join(', ')} is nearly full, ${what}.`, 'Make room there; it goes on by itself.'];
}

function missing(of, silent, spare) {
  if (!silent) return null;
  const left = spare > 0 ? `and so it does with ${spare} more down` : 'with no failure to spare';
  return [`${of}: all goes on, ${left}.`, `Start node ${silent} again, or replace it.`];
}

function mixed({ members }) {
  const versions = [...new Set(members.filter((it) => it.reachable && it.version).map((it) => it.version))].sort();
  if (versions.length < 2) return null;
  return [`The nodes run different versions: ${versions.join(', ')}.`, 'Let all run the same: start each again with the new one.'];
}

/** What is wrong with members that answer. */
function single({ members }) {
  const up = members.filter((it) => it.reachable);
  const find = (test, say) => {
    const found = up.find(test);
    return found && say(found);
  };
  const left = (it) => Number(it.condition.certificate_ends_in_s ?? Infinity);
  return find((it) => it.recovering, (it) => [`Node ${it.id}: ${it.recovering}`, 'The log of that node says why.'])
    ?? find((it) => it.state === 'candidate', (it) => [`Node ${it.id} follows no leader.`, 'The log of that node says why.'])
    ?? find((it) => Number(it.lag ?? 0) > LAG_MAX, (it) => [`Node ${it.id} lags: it has ${it.lag} entries to apply.`, 'Its log says why: a full or slow disk, or a slow network.'])
    ?? find((it) => held(it) > CLOCK_HELD_MAX_MS, (it) => [`Registry time stands still for ${duration(held(it))}: no lease ends.`, `The log of node ${it.id}, which leads, says why.`])
    ?? find((it) => left(it) < CERTIFICATE_ENDS_S, (it) => [ends(it.id, left(it)), `Make a new one where the CA is, for the hosts of the old one (quorate certs node ${it.id} --force), and copy both files to the node.`]);
}

const ends = (id, s) => (s < 0 ? `The certificate of node ${id} has ended: others refuse it.` : `The certificate of node ${id} ends in ${duration(s * 1000)}.`);

const held = (it) => Number(it.condition.clock_held_ms ?? 0);

/** Whether leases end now, in words; Eureka calls the other case self-preservation. */
export function protection(status) {
  const leader = status.members.find((it) => it.state === 'leader');
  if (!leader) return 'No leader in sight: no lease ends, and everything that is registered stays.';
  const still = held(leader);
  if (still > 0) return `Registry time has stood still for ${duration(still)}: no lease ends until the leader is sure of it again.`;
  return 'Registry time runs: an instance that stops renewing its lease leaves when the lease ends.';
}
