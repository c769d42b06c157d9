// Places the services of a dependency graph in columns: who calls stands left of what is called. A line over several columns
// has a place of its own in each of them, so that it does not run behind a box.

export const BOX = { width: 170, height: 30, across: 62, down: 12 };
const LANE = 6;

/** `edges`: [from, to] by name. Gives where each name stands, and the points of each edge. */
export function layout(names, edges) {
  const depth = depths(names, edges);
  const columns = [];
  for (const name of names) (columns[depth.get(name)] ??= []).push(name);
  const lanes = new Set();
  const ways = edges.map(([from, to], at) => way(from, to, at, depth, columns, lanes));
  order(columns, ways);
  const places = new Map();
  const tall = (it) => (lanes.has(it) ? LANE : BOX.height) + BOX.down;
  const heights = columns.map((column) => column.reduce((sum, it) => sum + tall(it), 0));
  const height = Math.max(0, ...heights);
  columns.forEach((column, x) => {
    let y = (height - heights[x]) / 2;
    for (const it of column) {
      places.set(it, { x: x * (BOX.width + BOX.across), y, middle: y + (tall(it) - BOX.down) / 2 });
      y += tall(it);
    }
  });
  const width = Math.max(0, columns.length * (BOX.width + BOX.across) - BOX.across);
  const lines = ways.map((each) => line(each, places));
  return { places, lines, width, height: height + (lines.some((each) => each.back) ? BOX.height : 0) };
}

/** What a line goes through, from its beginning to its end. */
function way(from, to, at, depth, columns, lanes) {
  const through = [from];
  for (let x = depth.get(from) + 1; x < depth.get(to); x += 1) {
    const lane = `${at}\n${x}`;
    lanes.add(lane);
    columns[x].push(lane);
    through.push(lane);
  }
  return [...through, to];
}

function line(through, places) {
  const points = through.map((it) => places.get(it));
  const [first, last] = [points[0], points[points.length - 1]];
  if (last.x <= first.x) return { path: under(first, last), back: true };
  let path = `M${points[0].x + BOX.width},${points[0].middle}`;
  for (let at = 1; at < points.length; at += 1) {
    const [a, b] = [points[at - 1], points[at]];
    const [x1, x2] = [a.x + BOX.width, b.x];
    const bend = Math.max(BOX.across / 2, Math.abs(x2 - x1) / 4);
    path += ` C${x1 + bend},${a.middle} ${x2 - bend},${b.middle} ${x2},${b.middle}`;
    if (at < points.length - 1) path += ` L${x2 + BOX.width},${b.middle}`;
  }
  return { path, back: false };
}

/** The line that closes a circle goes back below the boxes. */
function under(a, b) {
  const [x1, x2] = [a.x + BOX.width * 0.6, b.x + BOX.width * 0.4];
  const [y1, y2] = [a.middle + BOX.height / 2, b.middle + BOX.height / 2];
  const low = Math.max(y1, y2) + BOX.height;
  return `M${x1},${y1} C${x1},${low} ${x2},${low} ${x2},${y2}`;
}

/** How far each is from those that nobody calls: the longest way there. A circle is cut where it closes. */
function depths(names, edges) {
  const to = new Map(names.map((name) => [name, []]));
  for (const [a, b] of edges) to.get(a).push(b);
  const called = new Set(edges.map(([, b]) => b));
  const seen = new Map();
  const done = [];
  const closing = new Set();
  // Those first that nobody calls, so that circles close where they came from; and not by recursion: a chain may be long.
  for (const start of [...names].sort((a, b) => called.has(a) - called.has(b))) {
    if (seen.has(start)) continue;
    const stack = [[start, 0]];
    seen.set(start, 'open');
    while (stack.length) {
      const top = stack[stack.length - 1];
      const next = to.get(top[0])[top[1]];
      top[1] += 1;
      if (next === undefined) {
        seen.set(top[0], 'done');
        done.push(top[0]);
        stack.pop();
      } else if (!seen.has(next)) {
        seen.set(next, 'open');
        stack.push([next, 0]);
      } else if (seen.get(next) === 'open') {
        closing.add(`${top[0]}\n${next}`);
      }
    }
  }
  const depth = new Map(names.map((name) => [name, 0]));
  for (const name of done.reverse()) {
    for (const next of to.get(name)) {
      if (!closing.has(`${name}\n${next}`)) depth.set(next, Math.max(depth.get(next), depth.get(name) + 1));
    }
  }
  return depth;
}

/** Each column in the order of the middle of its neighbours, so that fewer lines cross. */
function order(columns, ways) {
  const near = new Map();
  const add = (a, b) => near.has(a) ? near.get(a).push(b) : near.set(a, [b]);
  for (const way of ways) {
    for (let at = 1; at < way.length; at += 1) {
      add(way[at - 1], way[at]);
      add(way[at], way[at - 1]);
    }
  }
  for (let pass = 0; pass < 8; pass += 1) {
    const at = new Map(columns.flatMap((column) => column.map((it, y) => [it, y - column.length / 2])));
    for (const column of columns) {
      const middle = new Map(column.map((it) => {
        const all = (near.get(it) ?? []).map((other) => at.get(other));
        return [it, all.length ? all.reduce((a, b) => a + b, 0) / all.length : 0];
      }));
      column.sort((a, b) => middle.get(a) - middle.get(b) || (a < b ? -1 : 1));
      column.forEach((it, y) => at.set(it, y - column.length / 2));
    }
  }
}
