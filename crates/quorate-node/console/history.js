// What a node still has of an instance's changes: before the page watched, too. A stream of its service tells them, from the
// oldest one on.

import { events, path } from './api.js';
import { Copy } from './copy.js';
import { Events } from './live.js';
import { changed } from './shapes.js';

const WITHIN_MS = 8_000;
/** Of the whole service: then what is left is not read. */
const BYTES_MAX = 8 * 1024 * 1024;
const SHOWN_MAX = 200;

/** Up to a revision: the changes of one instance, the newest first, and what can be said of those before. */
export async function history(namespace, service, id, upto) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), WITHIN_MS);
  const copy = new Copy();
  let [since, upTo, bytes] = ['', 0, 0];
  const taken = new Events(({ type, id: position, data }) => {
    const body = data ? JSON.parse(data) : {};
    if (type === 'change') {
      since ||= body.previous_revision;
      for (const change of body.changes) {
        if (change.instance.id === id) copy.apply({ ...changed(change), at: null });
      }
    }
    if (type === 'end' || type === 'reset') throw new Error(body.detail ?? 'the node begins anew');
    upTo = Number(position?.split('-').pop() ?? upTo);
  });
  try {
    const reader = await events(`${path(namespace, 'watch')}?service=${encodeURIComponent(service)}&from=oldest`, {}, abort.signal);
    while (upTo < upto && bytes < BYTES_MAX) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes += value.length;
      taken.feed(value);
    }
  } catch (error) {
    if (!abort.signal.aborted) throw error;
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
  return { seen: copy.changes.newest(undefined, SHOWN_MAX), since, whole: upTo >= upto };
}
