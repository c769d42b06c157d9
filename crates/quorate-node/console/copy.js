// The page's copy of a part of the registry: services with their instances, and what changed since the page watches.

import { Ring } from './ring.js';

const CHANGES_MAX = 5_000;
/** More would make the page slow: it then asks for a narrower prefix. */
export const INSTANCES_MAX = 200_000;

export class Copy {
  constructor() {
    this.services = new Map();
    this.size = 0;
    this.changes = new Ring(CHANGES_MAX);
  }

  /** Takes a part of a snapshot in; after the last one it stands in place of what there was. */
  load(parts) {
    const services = new Map();
    let size = 0;
    for (const part of parts) {
      const service = services.get(part.name) ?? new Service(part.name);
      services.set(part.name, service);
      service.revision = part.revision ?? service.revision;
      for (const instance of part.instances ?? []) {
        service.instances.set(instance.id, instance);
        size += 1;
      }
    }
    this.services = services;
    this.size = size;
  }

  /** One change; what it changed goes into the list of changes. */
  apply(change) {
    const now = change.instance;
    const service = this.services.get(now.service) ?? new Service(now.service);
    this.services.set(now.service, service);
    const before = service.instances.get(now.id);
    const removed = change.kind === 'removed';
    if (removed) service.instances.delete(now.id);
    else service.instances.set(now.id, now);
    this.size += (removed ? 0 : 1) - (before ? 1 : 0);
    service.changed(change.revision);
    const what = removed ? (change.reason || 'gone') : before ? differences(before, now) : arrival(now);
    this.changes.push({ at: change.at === undefined ? Date.now() : change.at, kind: change.kind, revision: change.revision, service: now.service, id: now.id, what });
  }

  /** A word of the page's own among the changes. */
  note(what) {
    this.changes.push({ at: Date.now(), kind: 'note', revision: '', service: '', id: '', what });
  }

  instance(service, id) {
    return this.services.get(service)?.instances.get(id);
  }

  /** Instances that say that they require a service. */
  dependents(name) {
    const found = [];
    for (const service of this.services.values()) {
      for (const instance of service.instances.values()) {
        if (instance.requires?.includes(name)) found.push(instance);
      }
    }
    return found;
  }
}

class Service {
  constructor(name) {
    this.name = name;
    this.revision = '0';
    this.instances = new Map();
    this.changedAt = 0;
    this.counted = null;
  }

  changed(revision) {
    this.revision = revision;
    this.changedAt = Date.now();
    this.counted = null;
  }

  /** What its row shows; the same object until something changes. */
  get summary() {
    this.counted ??= counted(this);
    return this.counted;
  }
}

function counted(service) {
  const sum = { name: service.name, revision: service.revision, at: service.changedAt, instances: service.instances.size };
  Object.assign(sum, { up: 0, usable: 0, critical: 0, overridden: 0, starting: 0, draining: 0, out_of_service: 0 });
  const zones = new Set();
  for (const it of service.instances.values()) {
    const status = it.status.toLowerCase();
    sum[status] = (sum[status] ?? 0) + 1;
    if (it.health === 'CRITICAL') sum.critical += 1;
    else if (it.status === 'UP') sum.usable += 1;
    if (it.override) sum.overridden += 1;
    if (it.zone) zones.add(it.zone);
  }
  sum.zones = [...zones].sort().join(', ');
  return sum;
}

function arrival(instance) {
  const parts = [instance.status, instance.version && `version ${instance.version}`, instance.zone && `zone ${instance.zone}`];
  return parts.filter(Boolean).join(', ');
}

const PLAIN = ['status', 'health', 'weight', 'zone', 'version', 'load'];
const WHOLE = ['endpoints', 'metadata', 'tags', 'requires', 'checks'];

/** What is another in an instance, in words. */
export function differences(before, now) {
  const said = [];
  for (const field of PLAIN) {
    const none = field === 'weight' || field === 'load' ? 0 : 'none';
    const [old, is] = [before[field] || none, now[field] || none];
    if (old !== is) said.push(`${field} ${old} → ${is}`);
  }
  for (const field of WHOLE) {
    if (JSON.stringify(before[field] ?? null) !== JSON.stringify(now[field] ?? null)) said.push(`other ${field}`);
  }
  if (before.incarnation !== now.incarnation) said.push('a new run of its process');
  const decisions = [before.override, now.override].map((it) => JSON.stringify(it ?? null));
  if (decisions[0] !== decisions[1]) said.push(now.override ? `override: ${now.override.reason || 'no reason given'}` : 'override cleared');
  if (before.health_reason !== now.health_reason && now.health_reason) said.push(now.health_reason);
  return said.join('; ') || 'no difference that shows';
}
