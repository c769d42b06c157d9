// Stands between the browser and the nodes, as a load balancer does: the address of the page stays when its node dies.

import net from 'node:net';

export async function proxy() {
  const open = new Set();
  const front = { url: '', to: [], drop, close };
  const server = net.createServer({ pauseOnConnect: true }, (client) => connect(client, [...front.to]));

  /** To the first node that takes the connection. */
  function connect(client, [next, ...rest]) {
    if (!next) return client.destroy();
    const { hostname, port } = new URL(next.url);
    const node = net.connect({ host: hostname, port: Number(port) });
    const refused = () => connect(client, rest);
    node.once('error', refused);
    node.once('connect', () => {
      node.off('error', refused);
      for (const [one, other] of [[client, node], [node, client]]) {
        open.add(one);
        one.on('error', () => other.destroy());
        one.on('close', () => {
          open.delete(one);
          other.destroy();
        });
        one.pipe(other);
      }
      client.resume();
    });
    client.on('error', () => node.destroy());
  }

  /** Ends all connections; those that come go where `to` says by then. */
  function drop() {
    for (const socket of open) socket.destroy();
  }

  function close() {
    drop();
    server.close();
  }

  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  front.url = `http://127.0.0.1:${server.address().port}`;
  return front;
}
