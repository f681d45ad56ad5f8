// A Socket.IO client that records all events.

import assert from 'node:assert/strict';
import { io } from 'socket.io-client';
import { DEADLINE_MS, within } from './check.mjs';

/**
 * Connects a device of a user and waits until the server knows it. It disconnects when the test `t` ends. Of `options`,
 * `userId` and `deviceId` go into the auth object; `transports`, `reconnection` … go to the library.
 */
export async function join(t, server, { userId, deviceId, ...options } = {}) {
  const auth = {};
  if (userId !== undefined) auth.userId = userId;
  if (deviceId !== undefined) auth.deviceId = deviceId;
  const client = connect(t, server, { auth, ...options });
  client.userId = userId;
  await client.connected();
  await client.fence();
  return client;
}

/** Joins like a client of the original design: no auth object, only `user-connected`, no acks. */
export async function joinAsBefore(t, server, userId, options = {}) {
  const client = connect(t, server, options);
  client.userId = userId;
  await client.connected();
  client.emit('user-connected', userId);
  await client.fence();
  return client;
}

/** A client that may be refused. */
export function connect(t, server, { auth, ...options } = {}) {
  const socket = io(server.url, {
    auth,
    forceNew: true,
    reconnection: false,
    transports: ['websocket'],
    ...options,
  });
  const client = new Client(socket);
  t.after(() => client.close());
  return client;
}

class Client {
  constructor(socket) {
    this.socket = socket;
    /** All events so far, in order: {event, payload}. */
    this.log = [];
    this.unread = [];
    this.waiting = [];
    socket.onAny((event, ...args) => this.#record(event, args));
    socket.on('connect_error', (error) => this.#record('connect_error', [error.message]));
    socket.on('disconnect', (reason) => this.#record('disconnect', [reason]));
  }

  get name() {
    return this.userId ?? 'client';
  }

  /** The names of all events so far, in order. */
  get names() {
    return this.log.map(({ event }) => event);
  }

  async connected() {
    if (this.socket.connected) return;
    await within(
      DEADLINE_MS,
      new Promise((resolve, reject) => {
        this.socket.once('connect', resolve);
        if (!this.socket.io.opts.reconnection) {
          this.socket.once('connect_error', (error) => reject(new Error(`could not connect: ${error.message}`)));
        }
      }),
      `${this.name} is connected`,
    );
  }

  /** Sends an event without an ack. */
  emit(event, ...payload) {
    this.socket.emit(event, ...payload);
  }

  /** Sends an event and returns the server's ack. */
  async ack(event, ...payload) {
    return within(
      DEADLINE_MS,
      new Promise((resolve) => this.socket.emit(event, ...payload, resolve)),
      `the server acks ${this.name}'s ${event}; came instead: ${this.#cameInstead()}`,
    );
  }

  /** Sends an event that must be accepted and returns the ack. */
  async ok(event, ...payload) {
    const answer = await this.ack(event, ...payload);
    assert.equal(answer?.ok, true, `${this.name}'s ${event} should be accepted: ${JSON.stringify(answer)}`);
    return answer;
  }

  /** The payload of the next unread event of this name; waits for it if necessary. */
  async next(event, matches = () => true, deadline = DEADLINE_MS) {
    const index = this.unread.findIndex((entry) => entry.event === event && matches(entry.payload));
    if (index >= 0) return this.unread.splice(index, 1)[0].payload;
    let waiter;
    const found = new Promise((resolve) => {
      waiter = { event, matches, resolve };
      this.waiting.push(waiter);
    });
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => {
        reject(new Error(`${this.name} got no such ${event} within ${deadline} ms; came instead: ${this.#cameInstead()}`));
      }, deadline);
    });
    try {
      return await Promise.race([found, late]);
    } finally {
      clearTimeout(timer);
      this.waiting = this.waiting.filter((other) => other !== waiter);
    }
  }

  /** The next `count` unread events of this name, in order. */
  async nextFew(event, count, deadline = DEADLINE_MS) {
    const payloads = [];
    while (payloads.length < count) {
      payloads.push(
        await this.next(event, undefined, deadline).catch((error) => {
          throw new Error(`after ${payloads.length} of ${count}: ${error.message}`);
        }),
      );
    }
    return payloads;
  }

  /**
   * A round trip: afterwards the server has processed all earlier events of this client, and this client has received
   * all earlier events of the server.
   */
  async fence() {
    await this.ack('ice:servers', {});
  }

  /**
   * Checks that no such event has arrived, by round trips instead of waiting: first of the clients that might have
   * caused it.
   */
  async none(event, { after = [] } = {}) {
    await settled(...after, this);
    const came = this.unread.filter((entry) => entry.event === event);
    assert.deepEqual(came, [], `${this.name} should get no ${event}`);
  }

  /** Checks that no unread event has arrived. */
  async nothingElse({ after = [] } = {}) {
    await settled(...after, this);
    assert.deepEqual(this.unread, [], `${this.name} should get nothing else`);
  }

  /** Marks all events so far as read. */
  forget() {
    this.unread = [];
  }

  /** Breaks the transport without a packet, like a lost network. */
  async drop() {
    const { engine } = this.socket.io;
    if (engine.transport.ws) engine.transport.ws.terminate();
    else engine.close();
    await this.next('disconnect');
  }

  /** Reconnects, as the library does by itself after a lost network, and waits until the server knows the device. */
  async comeBack() {
    this.socket.connect();
    await this.connected();
    await this.fence();
  }

  /** Disconnects on purpose. */
  close() {
    this.socket.io.reconnection(false);
    this.socket.disconnect();
  }

  #record(event, args) {
    const entry = { event, payload: args[0] };
    this.log.push(entry);
    const waiter = this.waiting.find((one) => one.event === event && one.matches(entry.payload));
    if (waiter) {
      this.waiting = this.waiting.filter((other) => other !== waiter);
      waiter.resolve(entry.payload);
    } else {
      this.unread.push(entry);
    }
  }

  #cameInstead() {
    const text = this.unread.map(({ event, payload }) => `${event} ${JSON.stringify(payload)?.slice(0, 200)}`).join('; ');
    return text ? text.slice(0, 2_000) : 'nothing';
  }
}

/** A round trip of each client, one after the other: all have received the events sent so far. */
export async function settled(...clients) {
  for (const client of clients) {
    if (client.socket.connected) await client.fence();
  }
}
