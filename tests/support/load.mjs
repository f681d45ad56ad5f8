// Users in lasting calls and users who call each other repeatedly, behind a balancer. Each message is repeated until it
// is acknowledged, as the web page does.

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { io } from 'socket.io-client';
import { answer, candidate, offer } from './calls.mjs';
import { eventually, someone } from './check.mjs';

const ACK_WITHIN_MS = 4_000;
const GIVE_UP_MS = 30_000;
const HEARD_WITHIN_MS = 8_000;
/** Retryable errors. */
const RETRYABLE = ['TEMPORARILY_UNAVAILABLE', 'RECIPIENT_OFFLINE', 'RATE_LIMITED'];
const RENEGOTIATE_EVERY = 20;

/** A device that reconnects by itself, and keeps the balancer's cookie as a browser does. */
export class Person {
  constructor(url, name, { polling = false } = {}) {
    this.userId = someone(name);
    /** The durations of its disconnections. */
    this.awayMs = [];
    this.refusals = {};
    this.sentAgain = 0;
    this.socket = io(url, {
      auth: { userId: this.userId, deviceId: 'd' },
      forceNew: true,
      // The page's own settings.
      reconnectionDelay: 400,
      reconnectionDelayMax: 2_000,
      ...(polling ? { transports: ['polling'], withCredentials: true } : { transports: ['websocket'] }),
    });
    if (!polling) this.#keepCookie();
    this.socket.on('disconnect', () => (this.lostAt ??= Date.now()));
    this.socket.on('connect', () => {
      if (this.lostAt) this.awayMs.push(Date.now() - this.lostAt);
      this.lostAt = undefined;
    });
  }

  #keepCookie() {
    const manager = this.socket.io;
    const open = () =>
      manager.engine.transport.ws?.once('upgrade', ({ headers }) => {
        const cookie = headers['set-cookie']?.[0].split(';')[0];
        if (cookie) manager.opts.extraHeaders = { cookie };
      });
    open();
    manager.on('reconnect_attempt', () => queueMicrotask(open));
  }

  async connected() {
    if (!this.socket.connected) await new Promise((resolve) => this.socket.once('connect', resolve));
  }

  /**
   * Repeats a request until it is acknowledged. Callbacks: `onSent` at each attempt, `onAgain` at one without a reply,
   * `onRefused` with the error of a refused one, `onAnswer` with the answer in its turn among the events: those that
   * come with it may be handled before the promise resolves.
   */
  async request(event, payload, { onSent = () => {}, onAgain = () => {}, onRefused = () => {}, onAnswer = () => {}, alsoRetry = [] } = {}) {
    const end = Date.now() + GIVE_UP_MS;
    for (;;) {
      await this.connected();
      onSent();
      const answered = await new Promise((resolve) => {
        this.socket.timeout(ACK_WITHIN_MS).emit(event, payload, (error, answer) => {
          if (!error && answer?.ok) onAnswer(answer);
          resolve(error ? undefined : answer);
        });
      });
      if (answered?.ok) return answered;
      if (answered) {
        const { type, retryAfterMs = 200, message } = answered.error;
        this.refusals[type] = (this.refusals[type] ?? 0) + 1;
        if (![...RETRYABLE, ...alsoRetry].includes(type)) throw new Error(`${this.userId}'s ${event} was refused: ${type}: ${message}`);
        onRefused(answered.error);
        await pause(Math.min(retryAfterMs, 1_000));
      } else {
        this.sentAgain += 1;
        onAgain();
      }
      if (Date.now() > end) throw new Error(`${this.userId}'s ${event} found no ear in ${GIVE_UP_MS} ms`);
    }
  }

  /** The payload of the next event of this name that satisfies `fits`. */
  next(event, fits) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => done(() => reject(new Error(`${this.userId} got no ${event}`))), GIVE_UP_MS);
      const take = (payload) => fits(payload) && done(() => resolve(payload));
      const done = (then) => {
        clearTimeout(late);
        this.socket.off(event, take);
        then();
      };
      this.socket.on(event, take);
    });
  }

  close() {
    this.socket.io.reconnection(false);
    this.socket.disconnect();
  }
}

/** One direction of a conversation: numbered messages, one after the other. */
class Speech {
  constructor(from, to, callId, everyMs) {
    Object.assign(this, { from, to, callId, everyMs });
    this.sent = 0;
    this.again = new Set();
    this.heard = [];
    const hear = (text) => this.heard.push(Number(/speech-(\d+)/.exec(text)[1]));
    to.socket.on('call:ice-candidate', (payload) => hear(payload.candidate.candidate));
    to.socket.on('call:offer', (payload) => payload.callId === callId && hear(payload.offer.sdp));
  }

  async go(goesOn) {
    while (goesOn()) {
      const number = this.sent + 1;
      const about = { toUserId: this.to.userId, callId: this.callId };
      // A refused message is not known to have arrived, but may have.
      const onAgain = () => this.again.add(number);
      const onRefused = onAgain;
      if (number % RENEGOTIATE_EVERY === 0) {
        await this.from.request('call:offer', { ...about, offer: offer(`speech-${number} ${'o'.repeat(2_400)}`) }, { onAgain, onRefused });
      } else {
        const one = { ...candidate(number), candidate: `speech-${number}` };
        await this.from.request('call:ice-candidate', { ...about, candidate: one }, { onAgain, onRefused });
      }
      this.sent = number;
      await pause(this.everyMs * (0.5 + Math.random()));
    }
  }

  get isComplete() {
    return new Set(this.heard).size === this.sent;
  }

  /** Checks that all messages arrived in order, and that only repeated ones arrived twice. */
  check() {
    const firsts = [...new Set(this.heard)];
    const doubled = this.heard.filter((number, index) => this.heard.indexOf(number) !== index);
    const missing = Array.from({ length: this.sent }, (_, index) => index + 1).filter((number) => !firsts.includes(number));
    return {
      missing,
      doubled: doubled.filter((number) => !this.again.has(number)),
      outOfOrder: firsts.filter((number, index) => index > 0 && number < firsts[index - 1]),
    };
  }
}

/** `calls` lasting calls, and `dialling` pairs that call each other repeatedly. */
export class Load {
  constructor({ url, calls, dialling, polling = 0, everyMs = 300 }) {
    Object.assign(this, { url, calls, dialling, polling, everyMs });
    this.people = [];
    this.speeches = [];
    this.ended = [];
    /** The ids of all calls. */
    this.placed = [];
    this.made = 0;
    /** How often an acknowledged offer or answer had to be sent again because it did not arrive. */
    this.repeated = 0;
    this.failures = [];
    this.goesOn = true;
  }

  person(name, options) {
    const person = new Person(this.url, name, options);
    this.people.push(person);
    return person;
  }

  async start() {
    const talking = Array.from({ length: this.calls }, (_, number) => this.#talk({ polling: number < this.polling }));
    const speeches = (await Promise.all(talking)).flat();
    this.speeches = speeches;
    const dialling = Array.from({ length: this.dialling }, () => this.#dial());
    this.work = [...speeches.map((speech) => speech.go(() => this.goesOn)), ...dialling].map((work) =>
      work.catch((error) => this.failures.push(error.message)),
    );
  }

  async #talk({ polling }) {
    const caller = this.person('anna', { polling });
    const callee = this.person('ben');
    await Promise.all([caller.connected(), callee.connected()]);
    const callId = await this.#connectCall(caller, callee);
    for (const one of [caller, callee]) one.socket.on('call:ended', (event) => this.ended.push(event));
    return [new Speech(caller, callee, callId, this.everyMs), new Speech(callee, caller, callId, this.everyMs)];
  }

  async #dial() {
    const caller = this.person('carol');
    const callee = this.person('dan');
    while (this.goesOn) {
      const callId = await this.#connectCall(caller, callee);
      const told = callee.next('call:ended', (event) => event.callId === callId);
      await caller.request('call:end', { toUserId: callee.userId, callId });
      // The call may have ended while the connection was lost: then the client asks, as docs/reference/protocol.md
      // requires.
      await Promise.race([told, this.#hasEnded(callee, callId)]);
      told.catch(() => {});
      this.made += 1;
      await pause(this.everyMs);
    }
  }

  /** Connects a call, whatever happens to the connections meanwhile. */
  async #connectCall(caller, callee) {
    const call = { toUserId: callee.userId, callType: 'video', clientCallId: someone('call') };
    // A retry after a refusal needs a new clientCallId: the old one stays refused.
    const onRefused = () => (call.clientCallId = someone('call'));
    const { callId, status } = await caller.request('call:initiate', call, { onRefused });
    assert.equal(status, 'pending', `${caller.userId} finds ${callee.userId} ${status}`);
    this.placed.push(callId);
    const isIts = (event) => event.callId === callId;
    await this.#untilHeard(callee.next('call:offer', isIts), () =>
      caller.request('call:offer', { toUserId: callee.userId, callId, offer: offer() }),
    );
    await this.#untilHeard(caller.next('call:answer', isIts), () =>
      callee.request('call:answer', { toUserId: caller.userId, callId, answer: answer() }),
    );
    return callId;
  }

  async #untilHeard(heard, say) {
    heard.catch(() => {});
    for (;;) {
      await say();
      const late = pause(HEARD_WITHIN_MS, 'late', { ref: false });
      if ((await Promise.race([heard, late])) !== 'late') return;
      this.repeated += 1;
    }
  }

  async #hasEnded(person, callId) {
    for (;;) {
      const { call } = await person.request('call:sync', { callId });
      if (!call || call.endedAt) return;
      await pause(100);
    }
  }

  /** Waits until all devices are connected and have sent more messages than before. */
  async goneOn() {
    await eventually(() => this.people.every(({ socket }) => socket.connected), 'all are back', 20_000);
    const said = this.speeches.map(({ sent }) => sent);
    const goOn = () => this.failures.length > 0 || this.speeches.every(({ sent }, index) => sent > said[index] + 3);
    await eventually(goOn, 'all say more', 20_000);
  }

  /** Stops sending and waits until all messages have arrived, or will not. */
  async stop({ within = 15_000 } = {}) {
    this.goesOn = false;
    await Promise.all(this.work);
    await eventually(() => this.speeches.every((speech) => speech.isComplete), 'all is heard', within).catch(() => {});
    const lost = { missing: 0, doubled: 0, outOfOrder: 0 };
    const examples = [];
    for (const speech of this.speeches) {
      const found = speech.check();
      for (const kind of Object.keys(lost)) {
        lost[kind] += found[kind].length;
        if (found[kind].length > 0) examples.push(`${speech.from.userId} to ${speech.to.userId}: ${kind} ${found[kind]} of ${speech.sent}`);
      }
    }
    const away = this.people.flatMap(({ awayMs }) => awayMs).sort((one, other) => one - other);
    const at = (share) => away[Math.min(away.length - 1, Math.floor(away.length * share))];
    const refusals = {};
    for (const person of this.people) {
      for (const [type, count] of Object.entries(person.refusals)) refusals[type] = (refusals[type] ?? 0) + count;
    }
    return {
      ended: this.ended.length,
      failures: this.failures,
      sent: this.speeches.reduce((total, { sent }) => total + sent, 0),
      ...lost,
      examples,
      sentAgain: this.people.reduce((total, person) => total + person.sentAgain, 0),
      callsMade: this.made,
      repeated: this.repeated,
      refusals,
      returns: away.length,
      awayMs: { median: at(0.5), p99: at(0.99), max: away.at(-1) },
    };
  }

  close() {
    this.goesOn = false;
    for (const person of this.people) person.close();
  }
}
