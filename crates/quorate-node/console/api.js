// Calls of /api/v1 at the node that this page came from. The token is kept for this tab alone, and no cookie is set, so that
// a page of another origin has nothing to use.

const KEPT = 'quorate.token';
const CALL_MS = 10_000;
/** The page is told so when a call is refused for want of a right: it may be new that the caller has none. */
export const FORBIDDEN = 'quorate.forbidden';

/** An answer that is no success, or none. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.code = problem.code ?? '';
    this.retryAfterMs = Number(problem.retry_after_ms ?? 0);
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT) ?? '',
  set: (text) => sessionStorage.setItem(KEPT, text),
  clear: () => sessionStorage.removeItem(KEPT),
};

export function headers(more) {
  const bearer = token.get();
  return bearer ? { authorization: `Bearer ${bearer}`, ...more } : { ...more };
}

/** The path of something in a namespace, each part as one segment. */
export function path(namespace, ...parts) {
  return ['/api/v1/namespaces', ...[namespace, ...parts].map(encodeURIComponent)].join('/');
}

export async function call(method, where, body) {
  const options = { method, headers: headers(), cache: 'no-store', credentials: 'same-origin', signal: AbortSignal.timeout(CALL_MS) };
  if (method !== 'GET') options.headers['content-type'] = 'application/json';
  if (body !== undefined) options.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(where, options);
  } catch (error) {
    const late = error.name === 'TimeoutError';
    throw new Refused(0, { detail: late ? `no answer within ${CALL_MS / 1000} s` : 'the node does not answer' });
  }
  if (!answer.ok) throw await refusal(answer);
  if (answer.status === 204) return {};
  try {
    return await answer.json();
  } catch {
    throw new Refused(0, { detail: 'the answer broke off' });
  }
}

/** Why an answer is no success: problem+json where it came from the API. */
export async function refusal(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // Something in between answered.
  }
  if (answer.status === 403) dispatchEvent(new Event(FORBIDDEN));
  return new Refused(answer.status, problem);
}

/** A stream of events; its answer is a success. */
export async function events(where, more, signal) {
  const options = { headers: headers({ accept: 'text/event-stream', ...more }), cache: 'no-store', credentials: 'same-origin', signal };
  const answer = await fetch(where, options);
  if (!answer.ok) throw await refusal(answer);
  return answer.body.getReader();
}

/** Whether a right is of this namespace; `null` is all of them. */
const covers = (right, namespace) => !right.namespace || right.namespace === '*' || right.namespace === namespace;

const ROLES = ['read', 'register', 'operator', 'admin'];

/** What the caller of this page may do, as the node says. */
export class Rights {
  constructor(me) {
    this.principal = me.principal ?? '';
    this.rights = me.rights ?? [];
    this.checked = me.checked ?? true;
  }

  /** At least this role, for services that begin so. */
  may(role, namespace, prefix = '') {
    if (!this.checked) return true;
    const needed = ROLES.indexOf(role);
    return this.rights.some((right) => {
      const has = ROLES.indexOf(String(right.role).toLowerCase());
      if (has === 3) return true;
      return has >= needed && covers(right, namespace) && prefix.startsWith(right.prefix ?? '');
    });
  }

  /** The namespaces that it names. */
  get namespaces() {
    const named = this.rights.map((right) => right.namespace).filter((name) => name && name !== '*');
    return [...new Set(named.length ? named : ['default'])];
  }

  /** The widest prefix of a namespace that may be read; `null`: none. */
  prefix(namespace) {
    if (this.may('read', namespace)) return '';
    const fit = this.rights.filter((right) => covers(right, namespace));
    return fit.map((right) => right.prefix ?? '').sort((a, b) => a.length - b.length)[0] ?? null;
  }
}
