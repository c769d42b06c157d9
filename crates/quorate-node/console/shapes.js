// What the API answers, in the forms that the views read. The one place that knows how it spells things.

/** "INSTANCE_STATUS_UP", "up" and "UP" are the same. */
const word = (text, prefix) => String(text ?? '').toUpperCase().replaceAll('-', '_').replaceAll(' ', '_').replace(prefix, '');

export function instance(it) {
  const health = word(it.health, 'HEALTH_');
  return {
    ...it,
    status: word(it.status, 'INSTANCE_STATUS_') || 'UNKNOWN',
    health: health === 'UNSPECIFIED' ? '' : health,
    override: it.override ? decision(it.override) : null,
    endpoints: it.endpoints ?? {},
    metadata: it.metadata ?? {},
    tags: it.tags ?? [],
    requires: it.requires ?? [],
    checks: it.checks ?? [],
  };
}

export function decision(it) {
  const status = word(it.status, 'INSTANCE_STATUS_');
  return { reason: it.reason ?? '', status: status === 'UNSPECIFIED' ? '' : status, weight: it.weight ?? null };
}

/** Whether a service may have this name: a place may say anything. */
export const isName = (text) => /^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/.test(text);

export const changed = (it) => ({ kind: String(it.kind).toLowerCase(), revision: String(it.revision), reason: it.reason, instance: instance(it.instance) });

/** "OUT_OF_SERVICE" for people. */
export const shown = (status) => status.replaceAll('_', ' ').toLowerCase();

export function member(it) {
  return {
    ...it,
    ...it.member,
    id: String(it.member?.id ?? it.id ?? ''),
    role: word(it.member?.role ?? it.role, 'MEMBER_ROLE_').toLowerCase(),
    state: word(it.state, 'NODE_STATE_').toLowerCase(),
    condition: it.condition ?? {},
  };
}

export function status(it) {
  return { ...it, header: it.header ?? {}, members: (it.members ?? []).map(member) };
}
