// The browser's own EventSource on a watch, while its node dies and while the cluster is founded anew. What it is told is compared
// with what another program is told by a node that lives.

import { fault, go, is } from './page.js';
import { until } from './until.js';

const WATCH = '/api/v1/namespaces/default/watch?prefix=stream';
const CHANGES = 300;

/** In the page: notes what an EventSource is told. */
function follow(where) {
  const told = { snapshots: [], changes: [], resets: 0, opened: 0, begun: 0, last: '' };
  self.followed = told;
  const begin = () => {
    told.begun += 1;
    const source = new EventSource(told.last ? `${where}&from=${told.last}` : where);
    const take = (event) => {
      if (event.lastEventId) told.last = event.lastEventId;
      return JSON.parse(event.data);
    };
    const flat = ({ revision, kind, instance }) => [revision, kind, instance.id, instance.metadata.n];
    const whole = (event) => {
      const { services, last, revision } = take(event);
      told.snapshots.push({ revision, last, ids: services.flatMap((it) => it.instances.map(({ id }) => id)) });
    };
    source.addEventListener('open', () => (told.opened += 1));
    source.addEventListener('snapshot', whole);
    source.addEventListener('reset', (event) => {
      told.resets += 1;
      told.changes = [];
      whole(event);
    });
    source.addEventListener('change', (event) => told.changes.push(...take(event).changes.map(flat)));
    source.addEventListener('error', () => {
      // The browser tries again by itself, unless something answered and refused.
      if (source.readyState === EventSource.CLOSED) setTimeout(begin, 200);
    });
  };
  begin();
}

/** The same, of a node that lives, until `end` is called. */
async function reference(node) {
  const abort = new AbortController();
  const told = { changes: [], ids: null, end: () => abort.abort() };
  const answer = await fetch(node.url + WATCH, { signal: abort.signal });
  const read = async () => {
    let rest = '';
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
      const events = (rest + piece).split('\n\n');
      rest = events.pop();
      for (const event of events) {
        const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, 'm'))?.[1];
        if (field('event') === 'snapshot') told.ids = JSON.parse(field('data')).services.flatMap((it) => it.instances.map(({ id }) => id));
        if (field('event') === 'change') told.changes.push(...JSON.parse(field('data')).changes.map(({ revision, kind, instance }) => [revision, kind, instance.id, instance.metadata.n]));
        if (field('event') === 'reset') fault('the node that lives sent a reset');
      }
    }
  };
  read().catch((error) => error.name !== 'AbortError' && fault(`the stream of the node that lives: ${error.stack}`));
  await until(() => 'a snapshot', () => told.ids);
  return told;
}

/** One change after the other, of ten instances; `kill` happens amid them. */
async function write(api, from, kill) {
  for (let n = from; n < from + CHANGES; n += 1) {
    if (n === from + CHANGES / 3) await kill();
    // One that is refused while nobody leads is written again: whether it counts once or twice, both streams tell.
    await until(() => `the write of ${n}`, async () => (await api.put('stream', `s-${n % 10}`, { metadata: { n: String(n) } })).status < 300);
  }
}

export async function stream(walk) {
  // It has no way to send a token.
  if (walk.tokens.admin) return;
  const { page, url, nodes, front, another } = walk;
  const [first, next, other] = nodes.all;
  page.allowed = ['ERR_', 'Failed to load', '503'];
  front.to = [first, next];
  front.drop();
  await go(page, url, 'me');
  await page.evaluate(follow, WATCH);
  await page.waitForFunction(() => self.followed.snapshots.some((it) => it.last));
  const should = await reference(other);
  await write(another(other), 0, () => nodes.kill(first));
  const told = await caught(page, should, CHANGES - 1);
  is(told.resets === 0 && told.opened > 1, `an EventSource whose node died: ${told.resets} resets, opened ${told.opened} times`);
  console.log(`  EventSource over the death of its node: ${told.changes.length} changes of ${should.changes.length}; opened ${told.opened} times, begun ${told.begun} times`);
  should.end();
  await nodes.run();
  await anew(walk);
  front.to = nodes.all;
  page.allowed = [];
}

/** Waits until the browser has all; it must be the same as the other program was told. */
async function caught(page, should, n) {
  await until(() => `change ${n} at the node that lives`, () => should.changes.at(-1)?.[3] === String(n));
  await page.waitForFunction((it) => self.followed.changes.at(-1)?.[3] === it, String(n), { timeout: 30_000 }).catch(() => fault(`the EventSource was not told of change ${n}`));
  const told = await page.evaluate(() => self.followed);
  const since = Number(should.changes[0][0]);
  const found = told.changes.filter(([revision]) => Number(revision) >= since);
  is(JSON.stringify(found) === JSON.stringify(should.changes), `an EventSource was told ${found.length} changes, not the ${should.changes.length} that there were`);
  return told;
}

async function anew({ page, nodes, front, another }) {
  const [first, next, other] = nodes.all;
  front.to = [first, next];
  const before = await page.evaluate(() => self.followed.last);
  await nodes.refound();
  await page.waitForFunction(() => self.followed.resets > 0, null, { timeout: 30_000 }).catch(() => fault('an EventSource of the cluster before got no reset'));
  const should = await reference(other);
  await write(another(other), 1000, async () => undefined);
  const told = await caught(page, should, 1000 + CHANGES - 1);
  const reset = told.snapshots.at(-1);
  is(told.resets === 1 && reset.ids.length === 0, `after a refound: ${told.resets} resets, the last with ${reset.ids}`);
  is(told.last.split('-')[0] !== before.split('-')[0], `positions before and after a refound: ${before}, ${told.last}`);
  console.log(`  EventSource over a refound: ${told.resets} reset, then ${told.changes.length} changes; ${before} became ${told.last}; begun ${told.begun} times`);
  should.end();
}
