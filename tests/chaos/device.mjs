// A device of one user, which only ever speaks with its peer, and tells the ledger all that it hears.

import { candidate } from '../support/calls.mjs';
import { Person } from '../support/load.mjs';

export class Device extends Person {
  constructor(url, name, ledger) {
    super(url, name);
    this.ledger = ledger;
    /** When it was without a connection. */
    this.absences = [];
    this.returns = 0;
    this.socket.onAny((event, payload) => ledger.heard(this, event, payload));
    this.socket.on('disconnect', () => this.absences.push({ from: Date.now(), to: Infinity }));
    this.socket.on('connect', () => {
      const last = this.absences.at(-1);
      if (!last) return;
      last.to = Date.now();
      this.returns += 1;
      this.onReturn?.();
    });
  }

  /** Says the next of its numbered messages in a call, until it is acknowledged. */
  async say(call) {
    const speech = call.speech.get(this.userId);
    const number = speech.next;
    speech.next += 1;
    const text = `said ${call.id} ${this.userId} ${this.peer.userId} ${number}`;
    const message = { toUserId: this.peer.userId, callId: call.id, candidate: { ...candidate(number), candidate: text } };
    await this.request('call:ice-candidate', message, { onAgain: () => speech.again.add(number) });
    speech.sent.set(number, this.ledger.fault);
  }

  /** Asks how a call stands, and tells the ledger if it has ended. */
  async sync(call) {
    const { call: found } = await this.request('call:sync', { callId: call.id });
    if (found?.endedAt) this.ledger.told(call.id, this.userId, found.reason);
    return found;
  }

  longestAwayMs(since, until) {
    const lengths = this.absences.map(({ from, to }) => Math.min(to, until) - Math.max(from, since));
    return Math.max(0, ...lengths);
  }

  /** Its network goes, without a word. */
  drop() {
    this.socket.io.engine?.transport?.ws?.terminate();
  }
}
