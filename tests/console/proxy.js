// Stands between the browser and the nodes, as a load balancer would: so that the node behind the page's address can die, and
// another one can take its place.

import net from 'node:net';

export async function proxy(targets) {
  const open = new Set();
  let target = targets[0];
  const server = net.createServer((client) => {
    if (!target) return client.destroy();
    const node = net.connect({ host: target.hostname, port: Number(target.port) });
    for (const [one, other] of [[client, node], [node, client]]) {
      open.add(one);
      one.on('error', () => other.destroy());
      one.on('close', () => {
        open.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    /** Ends all connections; those that come go to `next`, or nowhere. */
    turn(next) {
      target = next;
      for (const socket of open) socket.destroy();
    },
    close() {
      this.turn(null);
      server.close();
    },
  };
}
