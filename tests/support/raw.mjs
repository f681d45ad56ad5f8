// Clients below the library: a websocket that sends arbitrary text, and a bare TCP connection.

import { connect as connectTcp } from 'node:net';
import WebSocket from 'ws';
import { DEADLINE_MS, within } from './check.mjs';

/** A websocket that has opened Engine.IO and, unless `joins` is false, the Socket.IO namespace as `userId`. */
export async function rawSocket(t, server, { userId, deviceId, joins = true } = {}) {
  const raw = new RawSocket(`ws://127.0.0.1:${server.port}/socket.io/?EIO=4&transport=websocket`);
  raw.userId = userId;
  t.after(() => raw.destroy());
  await raw.frame((text) => text.startsWith('0{'), 'the Engine.IO opening');
  if (joins) {
    raw.send(`40${JSON.stringify({ userId, deviceId })}`);
    await raw.frame((text) => text.startsWith('40{'), 'the Socket.IO CONNECT');
    await raw.ack('ice:servers', {});
  }
  return raw;
}

class RawSocket {
  #acks = 0;

  constructor(url) {
    this.frames = [];
    this.waiting = [];
    this.ws = new WebSocket(url, { perMessageDeflate: false });
    this.ws.on('message', (data, isBinary) => this.#record(isBinary ? data : data.toString()));
    this.ws.on('error', () => {});
    /** Resolves with the websocket's close code when the connection has ended. */
    this.closed = new Promise((resolve) => this.ws.once('close', (code) => resolve(code)));
  }

  get isOpen() {
    return this.ws.readyState === WebSocket.OPEN;
  }

  /** Sends frames unchanged; several at once are sent in as few writes as possible. */
  send(...frames) {
    const tcp = this.ws._socket;
    tcp?.cork();
    for (const frame of frames) if (this.isOpen) this.ws.send(frame);
    tcp?.uncork();
  }

  emit(event, payload) {
    this.send(eventFrame(event, payload));
  }

  async ack(event, payload) {
    this.#acks += 1;
    const id = this.#acks;
    this.send(`42${id}${JSON.stringify([event, payload])}`);
    const text = await this.frame((frame) => frame.startsWith(`43${id}[`), `the ack of ${event}`);
    return JSON.parse(text.slice(`43${id}`.length))[0];
  }

  /** The payload of the next event of this name. */
  async event(name) {
    const start = `42["${name}"`;
    return JSON.parse((await this.frame((text) => text.startsWith(start), name)).slice(2))[1];
  }

  /** The next text frame that satisfies `fits`. */
  async frame(fits, what) {
    const index = this.frames.findIndex((frame) => typeof frame === 'string' && fits(frame));
    if (index >= 0) return this.frames.splice(index, 1)[0];
    const came = new Promise((resolve) => this.waiting.push({ fits, resolve }));
    const gone = this.closed.then((code) => {
      throw new Error(`the connection closed (${code}) while the test waited for ${what}`);
    });
    return within(DEADLINE_MS, Promise.race([came, gone]), what);
  }

  /** Stops reading from the network, like a client that hangs. */
  stopReading() {
    this.ws._socket.pause();
  }

  /** Breaks the connection without a closing handshake. */
  destroy() {
    this.ws.terminate();
  }

  #record(frame) {
    if (frame === '2') {
      if (this.isOpen) this.ws.send('3');
      return;
    }
    const index = this.waiting.findIndex(({ fits }) => typeof frame === 'string' && fits(frame));
    if (index >= 0) this.waiting.splice(index, 1)[0].resolve(frame);
    else this.frames.push(frame);
  }
}

export const eventFrame = (event, payload) => `42${JSON.stringify([event, payload])}`;

/** A TCP connection to the server; `closed` resolves with all data received until the server closed it. */
export function tcp(t, server) {
  const socket = connectTcp(server.port, '127.0.0.1');
  t.after(() => socket.destroy());
  let received = '';
  socket.setEncoding('latin1').on('data', (text) => (received += text));
  socket.on('error', () => {});
  const closed = new Promise((resolve) => socket.once('close', () => resolve(received)));
  return { socket, closed, received: () => received };
}
