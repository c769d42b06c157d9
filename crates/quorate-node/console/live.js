// Follows the registry over one stream of server-sent events, and keeps the page's copy. `fetch` reads it, since EventSource
// cannot send a token. It resumes after the last event that was taken in, so that nothing is lost and nothing comes twice.

import { Refused, events as opened, path } from './api.js';
import { Copy, INSTANCES_MAX } from './copy.js';
import { changed, instance } from './shapes.js';

/** The node says every 5 s how far it is, or sends a comment every 15 s: after this long it is dead. */
const SILENT_MS = 20_000;
const FIRST_WAIT_MS = 500;
/** A stream that lasted so long was a good one: the next one is tried soon. */
const STEADY_MS = 10_000;
const LONGEST_WAIT_MS = 15_000;
/** What is older than this is not live: as long as a node may be behind that counts as ready. */
const OLD_MS = 5_000;
/** A node that is followed is heard this often unless it says (`bookmark_ms`), by a comment at the least often, and up to this later. */
const HEARD_MS = 5_000;
const COMMENT_MS = 15_000;
const LATE_MS = 1_000;
/** More than any event is. */
const EVENT_MAX = 16 * 1024 * 1024;

export class Live {
  constructor(onChange) {
    this.copy = new Copy();
    this.onChange = onChange;
    /** connecting, live, waiting (for the next try), stopped (a right is missing) */
    this.phase = 'connecting';
    this.why = '';
    /** The status of an answer that no other try would change. */
    this.refused = 0;
    /** When it was last so that what is shown was what the registry had. */
    this.heardAt = 0;
    /** How often the node is heard where nothing happens. */
    this.every = HEARD_MS;
    this.leader = '';
    /** How old what came may have been when its node last said so, ms; null: it does not know. */
    this.age = 0;
    this.loaded = false;
    this.retryAt = 0;
    this.lastId = '';
    this.held = [];
    this.run = 0;
  }

  /** Whether what is shown is what the registry has. */
  get isLive() {
    return this.phase === 'live' && this.isNew && this.isHeard;
  }

  /** Whether the node is heard as often as it is to be: a connection that was cut off without a word is still open here. */
  get isHeard() {
    return Date.now() - this.heardAt <= OLD_MS + this.every + LATE_MS;
  }

  /** Whether the node that is heard has what the registry has. */
  get isNew() {
    return this.leader !== '0' && this.age !== null && this.age <= OLD_MS;
  }

  get revision() {
    return this.lastId.split('-').pop();
  }

  /** Whose registry it is: the same addresses may lead to another one later. */
  get cluster() {
    return this.lastId.split('-')[0];
  }

  /** Follows another part, from its beginning. */
  follow(namespace, prefix) {
    this.namespace = namespace;
    this.prefix = prefix;
    this.copy = new Copy();
    this.loaded = false;
    this.heardAt = 0;
    this.why = '';
    this.lastId = '';
    this.restart();
  }

  restart() {
    this.stop();
    this.loop(this.run);
  }

  stop() {
    this.run += 1;
    this.abort?.abort();
    this.wake?.();
  }

  async loop(run) {
    let failures = 0;
    this.refused = 0;
    while (run === this.run) {
      this.turn('connecting', this.why);
      const began = Date.now();
      let after = 0;
      try {
        await this.once(run);
        if (run === this.run) this.why = 'the node ended the stream';
      } catch (error) {
        if (run !== this.run) return;
        this.why = error.message;
        this.refused = error instanceof Refused && [400, 401, 403, 404].includes(error.status) ? error.status : 0;
        after = error.retryAfterMs ?? 0;
      }
      if (run !== this.run) return;
      if (this.refused) return this.turn('stopped', this.why);
      failures = Date.now() - began > STEADY_MS ? 0 : failures + 1;
      await this.wait(Math.max(delay(failures), after));
    }
  }

  async wait(ms) {
    this.retryAt = Date.now() + ms;
    this.turn('waiting', this.why);
    await new Promise((resolve) => {
      this.wake = resolve;
      setTimeout(resolve, ms);
    });
  }

  /** Tries again at once. */
  now() {
    this.wake?.();
  }

  turn(phase, why) {
    this.phase = phase;
    this.why = why;
    this.onChange();
  }

  async once(run) {
    const abort = new AbortController();
    this.abort = abort;
    let timer;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(new Error(`nothing was heard for ${SILENT_MS / 1000} s`)), SILENT_MS);
    };
    heard();
    try {
      const more = this.lastId ? { 'last-event-id': this.lastId } : {};
      const where = `${path(this.namespace, 'watch')}?prefix=${encodeURIComponent(this.prefix)}`;
      const reader = await opened(where, more, abort.signal);
      this.parts = this.lastId ? null : [];
      this.held = [];
      this.every = HEARD_MS;
      // That of the stream before says nothing of this one's.
      this.age = null;
      const events = new Events((event) => run === this.run && this.take(event), (comment) => this.begins(comment));
      for (;;) {
        const { done, value } = await reader.read();
        if (done || run !== this.run) return;
        heard();
        events.feed(value);
        // Without a leader, or news of it, nothing new comes, however often the node is heard.
        if (this.isNew) this.heardAt = Date.now() - this.age;
      }
    } catch (error) {
      if (abort.signal.aborted && abort.signal.reason instanceof Error) throw abort.signal.reason;
      if (error instanceof TypeError) throw new Refused(0, { detail: 'the node does not answer' });
      throw error;
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  /** What the node says at the beginning. */
  begins(comment) {
    const said = /^bookmark_ms (\d+)$/.exec(comment);
    if (said) this.every = Math.min(Number(said[1]), COMMENT_MS);
  }

  take({ type, id, data, comment }) {
    const body = data ? JSON.parse(data) : {};
    const said = /^age_ms (\d+|unknown)$/.exec(comment);
    if (said) this.age = said[1] === 'unknown' ? null : Number(said[1]);
    if (body.header?.leader_id !== undefined) this.leader = String(body.header.leader_id);
    if (body.header?.age_ms !== undefined) this.age = body.header.age_ms;
    if (body.header?.node_id !== undefined) this.node = String(body.header.node_id);
    if (type === 'end') throw new Refused(Number(body.status ?? 0), body);
    if (type === 'snapshot' || type === 'reset') this.snapshot(type, body, id);
    else if (type === 'change') this.changes(body);
    else if (type === 'leader') this.leader = String(body.leader_id ?? this.leader);
    // Within a snapshot the position does not count.
    if (id && this.parts === null) this.lastId = id;
    if (this.phase !== 'live' && this.loaded && this.parts === null) this.turn('live', '');
    this.onChange();
  }

  snapshot(type, body, id) {
    if (type === 'reset' || body.reset) this.wasReset = this.loaded;
    if (!body.services && type === 'reset') return;
    this.parts ??= [];
    this.held = [];
    for (const service of body.services ?? []) {
      this.parts.push({ ...service, instances: (service.instances ?? []).map(instance) });
    }
    const size = this.parts.reduce((sum, part) => sum + part.instances.length, 0);
    if (size > INSTANCES_MAX) throw new Refused(400, { detail: `more than ${INSTANCES_MAX} instances: give a narrower prefix` });
    if (body.last === false) return;
    this.copy.load(this.parts);
    this.parts = null;
    if (this.wasReset) this.copy.note(reset(this.cluster, (id ?? '').split('-')[0]));
    this.wasReset = false;
    this.loaded = true;
  }

  /** Those that do not move the position count with the ones that do: what is there in between may never have been. */
  changes(body) {
    this.held.push(...body.changes);
    if (body.revision === body.previous_revision) return;
    for (const change of this.held.splice(0)) this.copy.apply(changed(change));
  }
}

/** Why all was read anew. */
function reset(before, now) {
  if (before && now && before !== now) return `This is another cluster, ${now}: all was read anew.`;
  return 'The node no longer knew what changed in between: all was read anew.';
}

/** Up to twice as long with each failure, and not at the same time as all the others. */
function delay(failures) {
  const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** failures);
  return longest / 2 + Math.random() * (longest / 2);
}

/** Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html parses them. */
export class Events {
  /** `onComment`: of one that comes without an event. */
  constructor(onEvent, onComment = () => {}) {
    this.onEvent = onEvent;
    this.onComment = onComment;
    this.decoder = new TextDecoder();
    this.rest = '';
    this.begin();
  }

  begin() {
    this.type = '';
    this.comment = '';
    this.data = [];
    this.length = 0;
    this.moved = false;
  }

  feed(bytes) {
    const text = this.rest + this.decoder.decode(bytes, { stream: true });
    // A CR at the end may be half of a CRLF.
    const lines = text.split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    if (this.rest.length + this.length > EVENT_MAX) throw new Error('an event is too long');
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (line === '') {
      // One without data is none, but its id counts.
      if (this.data.length || this.moved) this.onEvent({ type: this.type || 'message', id: this.id, data: this.data.join('\n'), comment: this.comment });
      else if (this.comment) this.onComment(this.comment);
      return this.begin();
    }
    const colon = line.indexOf(':');
    if (colon === 0) this.comment = line.slice(1).trim();
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.type = value;
    else if (field === 'id') {
      this.id = value;
      this.moved = true;
    }
    else if (field === 'data') {
      this.data.push(value);
      this.length += value.length;
    }
  }
}
