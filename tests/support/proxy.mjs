// A TCP proxy in front of a server: a link that a test can cut, freeze and restore.

import { once } from 'node:events';
import { connect, createServer } from 'node:net';

/** Starts a proxy to `port`. `rewrite` may change the server's data, a chunk of bytes at a time. */
export async function startProxy(port, { rewrite = (bytes) => bytes } = {}) {
  const proxy = new Proxy(port, rewrite);
  proxy.server.listen(0, '127.0.0.1');
  await once(proxy.server, 'listening');
  proxy.port = proxy.server.address().port;
  return proxy;
}

class Proxy {
  #sockets = new Set();
  #links = new Set();
  #state = 'whole';
  #delayMs = 0;

  constructor(port, rewrite) {
    this.server = createServer((inside) => this.#join(inside, port, rewrite));
  }

  #join(inside, port, rewrite) {
    if (this.#state === 'cut') return inside.resetAndDestroy();
    this.#keep(inside);
    // A black hole accepts connections and sends nothing.
    if (this.#state === 'frozen') return undefined;
    const outside = connect(port, '127.0.0.1');
    this.#keep(outside);
    const link = { isSilent: false, delayMs: 0, sentBytes: 0 };
    this.#links.add(link);
    const write = (to, bytes) => this.#state === 'whole' && !link.isSilent && to.write(bytes);
    const pass = (to, bytes) => {
      const delayMs = this.#delayMs + link.delayMs;
      return delayMs ? setTimeout(write, delayMs, to, bytes) : write(to, bytes);
    };
    const end = (socket) => link.isSilent || (this.#links.delete(link) && socket.destroy());
    const count = (bytes) => (link.sentBytes += bytes.length);
    inside.on('data', (bytes) => count(bytes) && pass(outside, bytes)).on('close', () => end(outside));
    outside.on('data', (bytes) => pass(inside, rewrite(bytes))).on('close', () => end(inside));
    return undefined;
  }

  #keep(socket) {
    this.#sockets.add(socket);
    socket.on('error', () => {}).on('close', () => this.#sockets.delete(socket));
  }

  /** Resets all connections, and new ones. */
  cut() {
    this.#state = 'cut';
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Drops all data from now on without closing connections. */
  freeze() {
    this.#state = 'frozen';
  }

  /** Existing connections stay silent forever, as if a firewall had dropped their state; new ones work. */
  silence() {
    for (const link of this.#links) link.isSilent = true;
    this.#links.clear();
  }

  /** Delays all data by this much in each direction. May be reset to 0 only when no data is in flight. */
  slow(delayMs) {
    this.#delayMs = delayMs;
  }

  /** The connection that sends the most to the server during `work`. Its `delayMs` can be set. */
  async busiest(work) {
    const before = new Map([...this.#links].map((link) => [link, link.sentBytes]));
    await work();
    const sent = (link) => link.sentBytes - (before.get(link) ?? 0);
    return [...this.#links].reduce((one, other) => (sent(other) > sent(one) ? other : one));
  }

  /** New connections work again. Existing ones are closed, because their lost data cannot be recovered. */
  heal() {
    this.#state = 'whole';
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async stop() {
    for (const socket of this.#sockets) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }
}
