// A device of one user, which communicates with one peer and reports all its events to the ledger.

import { candidate } from '../support/calls.mjs';
import { Person } from '../support/load.mjs';
import { Diary } from './diary.mjs';

const SAID = 'call:ice-candidate';
/** The longest time that a message may be in flight to a connection whose loss the node has not noticed. */
const ON_ITS_WAY_MS = 15_000;
const BACK = ['call:resumed', 'call:peer-reconnected'];

export class Device extends Person {
  #tellBack;

  constructor(url, name, ledger) {
    super(url, name);
    this.ledger = ledger;
    /** The periods without a connection. */
    this.absences = [];
    this.returns = 0;
    this.diary = new Diary();
    /** The last status received for each watched user. */
    this.presence = new Map();
    this.watched = [];
    this.socket.onAny((event, payload) => {
      this.#write(payload?.callId, event, `hears ${event} ${worthKnowing(payload)}`);
      ledger.heard(this, event, payload);
      if (BACK.includes(event)) this.#tellBack?.('back');
    });
    this.socket.on('disconnect', (reason) => {
      this.#write(undefined, '', `has lost its connection: ${reason}`);
      this.absences.push({ from: Date.now(), to: Infinity });
    });
    this.socket.on('connect', () => {
      this.#write(undefined, '', `is connected as ${this.socket.id}, ${this.socket.io.opts.extraHeaders?.cookie ?? 'without a cookie'}`);
      const last = this.absences.at(-1);
      if (!last) return;
      last.to = Date.now();
      this.returns += 1;
      this.onReturn?.();
      this.watch(this.watched).catch(() => {});
    });
    this.socket.on('presence:update', ({ userId, status }) => this.presence.set(userId, status));
  }

  /** As `Person.request`; records the result of each attempt. */
  async request(event, payload, { onAgain = () => {}, onRefused = () => {}, ...options } = {}) {
    const write = (what, callId = payload.callId) => this.#write(callId, event, `${event} ${worthKnowing(payload)}: ${what}`);
    let sentAt;
    const onSent = () => {
      sentAt = Date.now();
      write('is sent');
    };
    const unanswered = () => {
      write('is not answered');
      onAgain(sentAt);
    };
    const refused = (error) => {
      write(`is refused: ${error.type} ${worthKnowing(error)}`);
      onRefused(error);
    };
    try {
      const answered = await super.request(event, payload, { ...options, onSent, onAgain: unanswered, onRefused: refused });
      write(`is answered after ${Date.now() - sentAt} ms: ${worthKnowing(answered)}`, answered.callId);
      return answered;
    } catch (error) {
      write(`is given up: ${error.message}`);
      throw error;
    }
  }

  #write(callId, event, text) {
    const { diary } = this.ledger.calls.get(callId) ?? this;
    const line = `${this.userId} ${text}`;
    if (event === SAID) diary.message(line);
    else diary.note(line);
  }

  /** Sends the next numbered message of a call, until it is acknowledged. */
  async say(call) {
    const speech = call.speech.get(this.userId);
    const number = speech.next;
    speech.next += 1;
    const text = `said ${call.id} ${this.userId} ${this.peer.userId} ${number}`;
    const message = { toUserId: this.peer.userId, callId: call.id, candidate: { ...candidate(number), candidate: text } };
    // A refused message is not known to have arrived, but may have.
    const onAgain = () => speech.again.add(number);
    await this.request(SAID, message, { onAgain, onRefused: onAgain });
    speech.sent.set(number, { fault: this.ledger.fault, at: Date.now() });
  }

  /** Resolves when this device or its peer has reconnected to the call; only the latest waiter is notified. */
  someoneIsBack() {
    return new Promise((resolve) => (this.#tellBack = resolve));
  }

  /** Asks for the state of a call, and reports its end to the ledger. */
  async sync(call) {
    const { call: found } = await this.request('call:sync', { callId: call.id });
    if (found?.endedAt) this.ledger.told(call.id, this.userId, found.reason);
    return found;
  }

  /** Whether the connection was lost while a message acknowledged at this time may have been in flight to it. */
  wasCutAround(at) {
    return this.absences.some(({ from }) => Math.abs(from - at) < ON_ITS_WAY_MS);
  }

  longestAwayMs(since, until) {
    const lengths = this.absences.map(({ from, to }) => Math.min(to, until) - Math.max(from, since));
    return Math.max(0, ...lengths);
  }

  /** Watches these users from now on, on each connection. */
  async watch(userIds) {
    this.watched = userIds;
    if (userIds.length === 0) return;
    const onAnswer = ({ presence }) => {
      for (const [userId, status] of Object.entries(presence)) this.presence.set(userId, status);
    };
    await this.request('presence:subscribe', { userIds }, { onAnswer });
  }

  /** Breaks the network without a packet. */
  drop() {
    this.socket.io.engine?.transport?.ws?.terminate();
  }
}

/** The fields to record in the diary, as far as they are present. */
function worthKnowing({ callId, clientCallId, reason, status, fromUserId, candidate: said, call } = {}) {
  const fields = { callId, clientCallId, reason, status, fromUserId, said: said?.candidate?.split(' ').at(-1), call: call?.status };
  return JSON.stringify(fields).replaceAll('"', '');
}
