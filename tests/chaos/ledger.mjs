// The ledger: sent and received events of each client, by call, and the violations among them.

import { Diary, storyOf } from './diary.mjs';

/** The default settings for the grace of a device and for the ringing time. */
const GRACE_MS = 10_000;
const RING_MS = 30_000;
/** Clients and nodes notice a loss at different moments: within this distance of the grace, both outcomes are right. */
const NEARLY_MS = 500;

/** The kinds of violations; each is a column of the table. */
export const KINDS = {
  ended: 'calls ended wrongly, or in two ways, or without a word to one side',
  history: 'history rows missing or wrong',
  disorder: 'messages out of order or doubled',
  stranger: 'messages to the wrong person',
  presence: 'watchers whose last word on somebody is not what is so',
  lost: 'acknowledged messages that never came',
  cut: 'acknowledged messages that were lost with the connection or the node of their receiver',
  failed: 'what clients could not do in the time that they try',
  violated: 'invariants that a node saw violated',
};

export class Ledger {
  constructor() {
    this.calls = new Map();
    this.incidents = [];
    /** The attempts that never got a reply: caller, callee, type and time. */
    this.unanswered = [];
    /** The fault to which events are attributed at the moment. */
    this.fault = 'none';
    /** Calls that ended because a party was away for longer than the grace. */
    this.excused = [];
    this.messages = 0;
  }

  /** Records a violation, with its call if there is one. */
  note(kind, text, { fault = this.fault, call } = {}) {
    this.incidents.push({ kind, text, fault, call, at: Date.now() });
  }

  /** A violation in words, with the story of its call if `nodes` are given. */
  tell({ kind, text, fault, call, at }, nodes) {
    const head = `${new Date(at).toISOString()} ${fault}: ${KINDS[kind]}: ${text}`;
    return call && nodes ? `${head}\n${storyOf(call, nodes)}` : head;
  }

  /** Records a call that a client placed, once its id is known. */
  placed(id, { caller, callee }, beganAt = Date.now()) {
    const known = this.calls.get(id);
    if (known) return known;
    const call = new Call(id, caller, callee, beganAt, this.fault);
    this.calls.set(id, call);
    return call;
  }

  /** Records the end of a call as one party knows it. */
  told(id, userId, reason) {
    const call = this.calls.get(id);
    if (!call || !reason) return;
    const before = call.told.get(userId);
    if (before !== undefined && before !== reason) this.note('ended', `${id}: ${userId} was told ${before}, then ${reason}`, { call });
    call.told.set(userId, reason);
    call.endedAt ??= Date.now();
    call.fault = this.fault;
  }

  /** Records an end that a party got as an event. */
  #toldByEvent(call, device, reason) {
    this.told(call.id, device.userId, reason);
    call.events.set(device, (call.events.get(device) ?? 0) + 1);
    if (call.events.get(device) > 1) this.note('ended', `${call.id}: ${device.userId} was told its end twice`, { call });
    if (call.isJudged) this.#judgeEnder(call);
  }

  /** A client that ends a call gets the ack only; it also gets an event only if an attempt had no clear reply. */
  #judgeEnder(call) {
    const { ender } = call;
    if (!ender || !call.events.has(ender) || call.isEndInDoubt || call.told.get(ender.userId) !== call.wants) return;
    this.note('ended', `${call.id}: ${ender.userId} ended it, and was told its end beside the answer`, { call });
  }

  /** Records an event that a client received. */
  heard(device, event, payload) {
    if (!payload?.callId) return;
    const call = this.calls.get(payload.callId);
    const isForeign = payload.fromUserId !== undefined && payload.fromUserId !== device.peer.userId;
    if (isForeign || (call && !call.has(device))) {
      this.note('stranger', `${device.userId} got ${event} of ${payload.callId} from ${payload.fromUserId}`, { call });
    }
    if (call?.has(device)) {
      if (event === 'call:ended') this.#toldByEvent(call, device, payload.reason);
      if (event === 'call:rejected') this.#toldByEvent(call, device, 'declined');
    }
    if (event === 'call:ice-candidate') this.#heardSaid(device, payload);
  }

  #heardSaid(device, { callId, candidate }) {
    this.messages += 1;
    const [, about, from, to, text] = /^said (\S+) (\S+) (\S+) (\d+)$/.exec(candidate?.candidate) ?? [];
    const call = this.calls.get(callId);
    if (about !== callId || from !== device.peer.userId || to !== device.userId) {
      this.note('stranger', `${device.userId} got "${candidate?.candidate}" in ${callId}`, { call });
      return;
    }
    const speech = call?.speech.get(from);
    const number = Number(text);
    if (!speech) return;
    if (speech.heard.has(number)) {
      // Unacknowledged messages are repeated, and a device that reconnects while the call rings gets all messages
      // again.
      const isAllowed = speech.again.has(number) || speech.callIsNew;
      if (!isAllowed) this.note('disorder', `${callId}: ${number} from ${from} came twice`, { call });
    } else if (number < speech.latest) {
      this.note('disorder', `${callId}: ${number} from ${from} came after ${speech.latest}`, { call });
    }
    speech.heard.add(number);
    speech.latest = Math.max(speech.latest, number);
  }

  /** The number of acknowledged messages that never arrived, counted for the fault under which they were sent. */
  missing(call) {
    let count = 0;
    for (const [from, speech] of call.speech) {
      const receiver = call.caller.userId === from ? call.callee : call.caller;
      for (const [number, { fault, at }] of speech.sent) {
        if (speech.heard.has(number)) continue;
        const kind = receiver.wasCutAround(at) ? 'cut' : 'lost';
        this.note(kind, `${call.id}: ${number} from ${from}`, { fault, call });
        count += 1;
      }
    }
    return count;
  }

  /** Checks that the call ended as its parties intended and that both know. Returns the violation otherwise. */
  judge(call) {
    const reasons = [...new Set(call.told.values())];
    if (reasons.length === 0) return false;
    call.reason = reasons[0];
    call.isJudged = true;
    this.#judgeEnder(call);
    if (reasons.length > 1) this.note('ended', `${call.id}: one side was told ${reasons[0]}, the other ${reasons[1]}`, { call });
    const isWanted = reasons.every((reason) => reason === call.wants);
    if (isWanted) return true;
    if (this.#isExcused(call, reasons[0])) {
      this.excused.push({ call: call.id, fault: this.fault });
      return true;
    }
    this.note('ended', `${call.id} of ${call.caller.userId} ended as ${reasons[0]}${call.wants ? `, not ${call.wants}` : ''}`, { call });
    return true;
  }

  #isExcused(call, reason) {
    if (reason === 'no_answer') return call.endedAt - call.beganAt >= RING_MS - NEARLY_MS;
    if (!['connection_lost', 'cancelled'].includes(reason)) return false;
    const until = call.endedAt;
    return [call.caller, call.callee].some((device) => device.longestAwayMs(call.beganAt, until) >= GRACE_MS - NEARLY_MS);
  }

  /** The counts of violations under a fault. */
  counts(fault) {
    const of = (kind) => this.incidents.filter((incident) => incident.kind === kind && incident.fault === fault).length;
    return Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, of(kind)]));
  }
}

class Call {
  constructor(id, caller, callee, beganAt, fault) {
    Object.assign(this, { id, caller, callee, beganAt, fault });
    /** By user: the end reason that this party knows. */
    this.told = new Map();
    /** By device: the number of end events. */
    this.events = new Map();
    this.diary = new Diary();
    this.speech = new Map([caller, callee].map(({ userId }) => [userId, new Speech()]));
  }

  /** A party is about to end the call, for this reason. */
  isEndedBy(device, reason) {
    Object.assign(this, { ender: device, wants: reason });
  }

  has(device) {
    return device === this.caller || device === this.callee;
  }

  get isOver() {
    return this.told.size > 0;
  }

  /** After the answer, no earlier message is sent again. */
  answered() {
    for (const speech of this.speech.values()) speech.callIsNew = false;
  }

  isHeard() {
    return [...this.speech.values()].every((speech) => [...speech.sent.keys()].every((number) => speech.heard.has(number)));
  }
}

/** The numbered messages of one party of a call. */
class Speech {
  constructor() {
    this.next = 1;
    /** By number: the fault and the time at which it was acknowledged. */
    this.sent = new Map();
    this.again = new Set();
    this.heard = new Set();
    this.latest = 0;
    this.callIsNew = true;
  }
}
