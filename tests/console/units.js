// What single modules of the console do, run in the page itself, since they are modules of a browser.

/** Gives what is wrong. */
export const units = () => (async () => {
  const wrong = [];
  const same = (is, should, what) => {
    if (JSON.stringify(is) !== JSON.stringify(should)) wrong.push(`${what}: ${JSON.stringify(is)}, not ${JSON.stringify(should)}`);
  };
  const { Events, Live } = await import('./live.js');
  const { Rights } = await import('./api.js');
  const { Ring } = await import('./ring.js');
  const { Copy, differences } = await import('./copy.js');
  const { layout } = await import('./layout.js');
  const { verdict, protection } = await import('./verdict.js');
  const { instance, status } = await import('./shapes.js');
  const { button, outward } = await import('./dom.js');
  const { buttons } = await import('./actions.js');
  const { part } = await import('./views/parts.js');
  const { command, word } = await import('./shell.js');

  // Events come in pieces of any length, with every end of a line.
  const text = ': a comment\nid: c-1\nevent: change\ndata: {"a":\ndata: "ü€😀"}\n\nevent: empty\n\nid: c-2\n\ndata:x\nretry: 5\n\ndata: unfinished\n';
  const should = [['change', 'c-1', '{"a":\n"ü€😀"}', 'a comment'], ['message', 'c-2', '', ''], ['message', 'c-2', 'x', '']].map(([type, id, data, comment]) => ({ type, id, data, comment }));
  for (const end of ['\n', '\r\n', '\r']) {
    const bytes = new TextEncoder().encode(text.replaceAll('\n', end));
    for (let size = 1; size < bytes.length; size += 1) {
      const found = [];
      const events = new Events((event) => found.push(event));
      for (let at = 0; at < bytes.length; at += size) events.feed(bytes.subarray(at, at + size));
      same(found, should, `events with ${JSON.stringify(end)} in pieces of ${size}`);
    }
  }

  const operator = new Rights({ checked: true, rights: [{ role: 'operator', namespace: 'default', prefix: 'orders' }, { role: 'read', namespace: null, prefix: '' }] });
  const may = [['operator', 'default', 'orders-eu'], ['operator', 'default', 'order'], ['operator', 'other', 'orders'], ['register', 'default', 'orders'], ['read', 'other', 'x'], ['admin', 'default', 'orders']];
  same(may.map((of) => operator.may(...of)), [true, false, false, true, true, false], 'rights of an operator');
  same(new Rights({ checked: true, rights: [] }).may('read', 'default'), false, 'no rights');
  same(new Rights({}).may('admin', ''), false, 'rights that were not told');
  same(new Rights({ checked: false }).may('admin', ''), true, 'a node that checks none');
  same(new Rights({ checked: true, rights: [{ role: 'admin' }] }).may('operator', 'any', 'any'), true, 'an admin');
  same(new Rights({ checked: true, rights: [{ role: 'read', namespace: 'a', prefix: 'b' }] }).prefix('a'), 'b', 'the prefix that may be read');
  same(new Rights({ checked: true, rights: [{ role: 'read', namespace: null, prefix: 'b' }, { role: 'read', namespace: 'c', prefix: 'd' }] }).prefix('a'), 'b', 'the prefix that may be read everywhere');

  const ring = new Ring(10);
  for (let at = 0; at < 1000; at += 1) ring.push({ at });
  same([ring.entries.length <= 11, ring.total, ring.newest().length, ring.newest()[0].at], [true, 1000, 10, 999], 'a ring');

  const anew = new Live(() => {});
  const snapshot = (type, id) => anew.take({ type, id, comment: '', data: JSON.stringify({ services: [], last: true }) });
  const notes = ['a-1', 'a-9', 'b-2'].map((id, at) => (snapshot(at ? 'reset' : 'snapshot', id), anew.copy.changes.newest()[0]?.what ?? ''));
  same(notes.map((note) => /no longer knew/.test(note) * 1 + /another cluster/.test(note) * 2), [0, 1, 2], 'what is said of all that was read anew');

  const copy = new Copy();
  const one = instance({ service: 's', id: 'i', status: 'INSTANCE_STATUS_UP', weight: 100, incarnation: '1' });
  copy.load([{ name: 's', revision: '4', instances: [] }, { name: 's', revision: '4', instances: [one] }]);
  same([copy.size, copy.services.get('s').summary.usable], [1, 1], 'a copy');
  copy.apply({ kind: 'modified', revision: '5', instance: { ...one, health: 'CRITICAL' } });
  same([copy.size, copy.services.get('s').summary.usable, copy.services.get('s').summary.critical], [1, 0, 1], 'a change');
  for (let twice = 0; twice < 2; twice += 1) copy.apply({ kind: 'removed', revision: '6', reason: 'expired', instance: one });
  same([copy.size, copy.changes.newest()[0].what], [0, 'expired'], 'a removal');
  same(differences(one, { ...one, weight: 0, incarnation: '2' }), 'weight 100 → 0; a new run of its process', 'differences');

  const live = new Live(() => {});
  live.copy.load([{ name: 's', revision: '4', instances: [one] }]);
  const event = (revision, kind, id) => live.take({ type: 'change', id: `c-${revision}`, comment: '', data: JSON.stringify({
    revision, previous_revision: '4', changes: [{ kind, revision: '5', instance: { ...one, id } }],
  }) });
  event('4', 'removed', 'i');
  same([live.copy.size, live.held.length], [1, 1], 'a part of changes');
  event('9', 'added', 'j');
  same([live.copy.size, live.held.length, [...live.copy.services.get('s').instances.keys()]], [1, 0, ['j']], 'changes that count together');

  // The line says "Live" no longer than the node may be silent.
  const heard = (agoMs, comment) => {
    const it = new Live(() => {});
    new Events(() => {}, (said) => it.begins(said)).feed(new TextEncoder().encode(`retry: 1234\n${comment}\n\n`));
    Object.assign(it, { phase: 'live', age: 0, leader: '1', heardAt: Date.now() - agoMs });
    return it.isLive;
  };
  same([0, 9_000, 12_000].map((it) => heard(it, ': bookmark_ms 5000')), [true, true, false], 'live, where a node is heard every 5 s');
  same([0, 9_000, 12_000].map((it) => heard(it, ': other')), [true, true, false], 'live, where a node says not how often it is heard');
  same([3_000, 8_000].map((it) => heard(it, ': bookmark_ms 100')), [true, false], 'live, where a node is heard ten times a second');
  same([15_000, 30_000].map((it) => heard(it, ': bookmark_ms 600000')), [true, false], 'live, where comments alone are heard');

  const edges = [['a', 'b'], ['b', 'c'], ['c', 'a'], ['a', 'c'], ['d', 'd']];
  const drawn = layout(['a', 'b', 'c', 'd'], edges);
  same(drawn.lines.map((line) => line.back), [false, false, true, false, true], 'lines of a circle');
  same([...drawn.places.values()].every((it) => Number.isFinite(it.x + it.y)), true, 'places');
  const long = Array.from({ length: 20_000 }, (_, at) => `n${at}`);
  same(layout(long.slice(0, 300), long.slice(0, 299).map((it, at) => [it, `n${at + 1}`])).places.size > 299, true, 'a long chain');

  const member = (id, more) => ({ member: { id, role: 'voter' }, reachable: true, state: 'follower', state_hash_index: '1', state_hash: '1', ...more });
  const judged = (members, leader = '1') => verdict(status({ header: { leader_id: leader }, members })).health;
  const three = [member('1', { state: 'leader' }), member('2'), member('3')];
  same(judged(three), 'OK', 'three nodes');
  same(judged([three[0], three[1], member('3', { reachable: false })]), 'DEGRADED', 'a node down');
  same(judged([three[0], member('2', { reachable: false }), member('3', { reachable: false })]), 'NO QUORUM', 'two nodes down');
  same(judged(three, '0'), 'NO QUORUM', 'no leader');
  same(judged([three[0], three[1], member('3', { state_hash: '2' })]), 'DEGRADED', 'a node that disagrees');
  same(judged([three[0], three[1], member('3', { disk_low: true })]), 'DEGRADED', 'a full disk');
  same(judged([member('1', { state: 'leader', version: '0.2.0' }), member('2', { version: '0.2.0' }), member('3', { version: '0.1.0' })]), 'DEGRADED', 'a node of another version');
  const refuses = (id, writes_refused, more) => member(id, { condition: { writes_refused }, ...more });
  same(judged([refuses('1', 'disk_floor', { disk_low: true }), three[1], three[2]]), 'NO WRITES', 'a disk at its floor');
  same(judged([refuses('1', 'audit'), three[1], three[2]]), 'DEGRADED', 'one audit log that cannot be written');
  same(judged(['1', '2', '3'].map((id) => refuses(id, 'audit'))), 'NO WRITES', 'no audit log that can be written');
  same(judged([refuses('1', 'state_full'), three[1], three[2]]), 'DEGRADED', 'a full registry');
  const held = status({ members: [member('1', { state: 'leader', condition: { clock_held_ms: '9000' } })] });
  same(protection(held).includes('9 s'), true, 'registry time that stands still');

  const words = [['a-1', 'a-1'], ['', "''"], ["it's $HOME; `x`", "'it'\\''s $HOME; `x`'"], ['größer', "'größer'"], ["a\n'\u001b[201~", "$'a\\x0a\\x27\\x1b[201~'"], ['\u202ea', "$'\\xe2\\x80\\xaea'"]];
  for (const [text, should] of words) same(word(text), should, `a word of a shell: ${text}`);
  const checks = [{ http: { path: '/up' }, endpoint: 'admin', interval_ms: 5000, timeout_ms: 1000, failures_before_critical: 3, successes_before_passing: 1 }];
  const whole = { ...one, namespace: 'n', endpoints: { http: 'http://h:1' }, metadata: { 'a b': 'c' }, tags: ['t'], requires: ['r'], checks };
  same(command(whole), "quorate register s i --namespace n --endpoint http=http://h:1 --weight 100 --meta 'a b=c' --tag t --requires r --check http=/up,endpoint=admin,every=5000ms,timeout=1000ms,failures=3,successes=1", 'a command');

  for (const uri of ['javascript:alert(1)', ' javascript:alert(1)', 'data:text/html,x', 'blob:http://x/y', 'file:///etc', 'tcp://h:1', 'x', '//h/x', 'view-source:http://x']) {
    same(outward(uri).tagName, 'SPAN', `${uri} is no link`);
  }
  same(outward('HTTPS://h/x').tagName, 'A', 'https is a link');

  // Rows are built anew while the keyboard is on the button of one: Enter would do it to another.
  const rows = part('rows');
  document.body.append(rows.root);
  const anyone = new Rights({ checked: false });
  const of = (ids) => ids.flatMap((id) => buttons(anyone, { ...one, namespace: 'n', id }));
  for (const [name, ids] of [['before', ['a', 'b', 'c']], ['anew', ['b', 'c']], ['after another came', ['a', 'b', 'c', 'd']]]) {
    rows.show(name, () => of(ids));
    if (name === 'before') [...rows.root.children].filter((it) => it.textContent === 'Drain')[2].focus();
    same(document.activeElement.getAttribute('aria-label'), 'Drain: s/c', `the keyboard ${name}`);
  }
  rows.show('gone', () => of(['a', 'b']));
  same(rows.root.contains(document.activeElement), false, 'the keyboard is on the row of another, where its own is gone');
  const plain = ['x', 'y'].map((label) => () => ['w', 'x', 'y'].map((it) => button(it, () => {}, { class: label })));
  rows.show('plain', plain[0]);
  rows.root.children[2].focus();
  rows.show('plain anew', plain[1]);
  same(document.activeElement.textContent, 'y', 'the keyboard on a button without a label');
  rows.root.remove();
  return wrong;
})();
