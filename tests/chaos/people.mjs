// Pairs of users: some in one lasting call, some who call each other repeatedly, some idle after a fault.

import { setTimeout as pause } from 'node:timers/promises';
import { answer, offer } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { Device } from './device.mjs';
import { Diary, toldBy } from './diary.mjs';

/** The longest wait for an event: longer than a node that freezes for 15 s needs. */
const PATIENCE_MS = 25_000;
const SAID_AGAIN_MS = 8_000;
/** The calls of idle pairs end within this time after a fault, while Redis is frozen or restarting. */
const LONGEST_UNTIL_END_MS = 3_000;
/** Within this time after recovery, each watcher's last status of a user is true. */
const PRESENCE_WITHIN_MS = 15_000;
/** Refusals that pass by themselves after the shared state has temporarily lost a call's end. */
const PASSING = ['CALL_IN_PROGRESS'];

class Pair {
  constructor(url, ledger) {
    this.ledger = ledger;
    this.caller = new Device(url, 'anna', ledger);
    this.callee = new Device(url, 'ben', ledger);
    this.caller.peer = this.callee;
    this.callee.peer = this.caller;
    for (const device of this.devices) device.onReturn = () => this.#returned(device);
  }

  get devices() {
    return [this.caller, this.callee];
  }

  /** After a reconnect the client sends call:sync, as docs/reference/protocol.md requires. */
  #returned(device) {
    const { call } = this;
    if (call && !call.told.has(device.userId)) device.sync(call).catch(() => {});
  }

  async place() {
    const { caller, callee, ledger } = this;
    this.call = undefined;
    this.beganAt = Date.now();
    const onAgain = (sentAt) => ledger.unanswered.push({ caller: caller.userId, callee: callee.userId, callType: 'video', sentAt });
    const asked = { toUserId: callee.userId, callType: 'video', clientCallId: someone('call') };
    const onRefused = ({ type, callId }) => {
      if (type !== 'RECIPIENT_OFFLINE') return;
      if (callId) this.#refused(callId, 'offline');
      // A refused attempt stays refused under its clientCallId.
      asked.clientCallId = someone('call');
    };
    for (;;) {
      const { callId, status, reason } = await caller.request('call:initiate', asked, { onAgain, onRefused, alsoRetry: PASSING });
      if (reason === 'busy') {
        this.#refused(callId, reason);
        ledger.note('failed', `${callId}: ${callee.userId} was taken for busy`, { call: this.story });
        asked.clientCallId = someone('call');
        await pause(300);
        continue;
      }
      this.call = ledger.placed(callId, this, this.beganAt);
      if (status === 'ended' || status === 'missed') ledger.told(callId, caller.userId, reason);
      return this.call;
    }
  }

  #refused(callId, reason) {
    const call = this.ledger.placed(callId, this);
    call.wants = reason;
    call.reason = reason;
    call.fault = this.ledger.fault;
  }

  /** Places a call, and waits until the callee has the offer. */
  async ring() {
    const call = await this.place();
    const { caller, callee } = this;
    await untilHeard(heardOf(callee, 'call:offer', call), caller, () =>
      caller.request('call:offer', { toUserId: callee.userId, callId: call.id, offer: offer() }),
    );
    await caller.say(call);
    return call;
  }

  async pickUp(call) {
    const { caller, callee } = this;
    await untilHeard(heardOf(caller, 'call:answer', call), callee, () =>
      callee.request('call:answer', { toUserId: caller.userId, callId: call.id, answer: answer() }),
    );
    call.answered();
  }

  /** Waits until all messages have arrived, or never will: then the pair waited in vain. */
  async hearOut(call) {
    const beganAt = Date.now();
    await eventually(() => call.isOver || call.isHeard(), 'all is heard', PATIENCE_MS).catch(() => {});
    if (!call.isOver && this.ledger.missing(call) > 0) this.waitedForNothing(beganAt);
  }

  waitedForNothing() {}

  /** One party ends the call, and the other gets the event. */
  async end(call, ender, event, reason) {
    call.isEndedBy(ender, reason);
    const doubt = () => (call.isEndInDoubt = true);
    const about = { toUserId: ender.peer.userId, callId: call.id };
    const told = await ender.request(event, about, { onAgain: doubt, onRefused: doubt });
    this.ledger.told(call.id, ender.userId, told.reason);
    await this.#learn(call, ender.peer);
  }

  async #learn(call, device) {
    const knows = () => call.told.has(device.userId);
    await eventually(knows, 'the end is known', PATIENCE_MS).catch(() => {});
    if (knows()) return;
    await device.sync(call);
    this.ledger.note('ended', `${call.id}: ${device.userId} was not told its end${knows() ? '' : ', and it goes on there'}`, { call });
  }

  /** After a violation: both parties ask for the state of the call, and it is ended if it is live. */
  async clear(call, error) {
    if (!call) return this.ledger.note('failed', error.message, { call: this.story });
    let [found] = await Promise.all(this.devices.map((device) => device.sync(call)));
    if (!call.isOver) {
      this.ledger.note('failed', `${call.id}: ${error.message}; it is ${found?.status ?? 'not known'}`, { call });
      await this.end(call, this.caller, 'call:end', found?.status === 'answered' ? 'completed' : 'cancelled');
    }
    for (const device of this.devices) {
      if (!call.told.has(device.userId)) await this.#learn(call, device);
    }
  }

  /** The story of the call, or of the attempt while there is no call. */
  get story() {
    const { call, beganAt, caller, callee } = this;
    return call ?? { id: 'none', beganAt, caller, callee, diary: new Diary() };
  }

  close() {
    for (const device of this.devices) device.close();
  }
}

/**
 * A pair in one lasting call with messages in both directions. If the call ends, that is a violation, and the pair
 * starts another.
 */
export class Talkers extends Pair {
  async live({ goesOn, everyMs }) {
    while (goesOn()) {
      let call;
      try {
        call = await this.ring();
        await this.pickUp(call);
        this.isTalking = true;
        const goOn = () => goesOn() && !call.isOver;
        await Promise.all(this.devices.map((device) => this.#talk(device, call, goOn, everyMs)));
        if (call.isOver) throw new Error('it ended');
        await this.hearOut(call);
        await this.end(call, this.caller, 'call:end', 'completed');
      } catch (error) {
        this.isTalking = false;
        call = this.call;
        await this.clear(call, error).catch((again) => this.ledger.note('failed', again.message, { call: this.story }));
      }
      if (call) this.ledger.judge(call);
    }
  }

  async #talk(device, call, goesOn, everyMs) {
    while (goesOn()) {
      await device.say(call);
      await pause(everyMs * (0.5 + Math.random()));
    }
  }

  /** The fraction of their messages that arrived. */
  get said() {
    return this.call ? Math.min(...[...this.call.speech.values()].map(({ latest }) => latest)) : 0;
  }
}

/** A pair that places calls, sends messages, and ends calls, repeatedly and in all ways. */
export class Dialers extends Pair {
  made = 0;
  inVainMs = 0;

  /** The time from the fault until the first call that was placed after it worked. */
  get worksAfterMs() {
    return this.worksAt ? this.worksAt - this.struckAt - this.inVainMs : Infinity;
  }

  async live({ goesOn, everyMs }) {
    for (let round = Math.floor(Math.random() * 4); goesOn(); round += 1) {
      let call;
      const beganAt = Date.now();
      try {
        call = await this.ring();
        await this.#finish(call, round % 4, beganAt);
        this.made += 1;
      } catch (error) {
        call = this.call;
        await this.clear(call, error).catch((again) => this.ledger.note('failed', again.message, { call: this.story }));
      }
      if (call) this.ledger.judge(call);
      await pause(everyMs * (0.5 + Math.random()));
    }
  }

  async #finish(call, kind, beganAt) {
    const { caller, callee } = this;
    if (kind === 0) {
      this.#works(beganAt);
      await this.hearOut(call);
      return this.end(call, caller, 'call:end', 'cancelled');
    }
    if (kind === 1) {
      this.#works(beganAt);
      return this.end(call, callee, 'call:reject', 'declined');
    }
    await this.pickUp(call);
    this.#works(beganAt);
    for (let number = 0; number < 3; number += 1) await Promise.all([caller.say(call), callee.say(call)]);
    await this.hearOut(call);
    return this.end(call, kind === 2 ? caller : callee, 'call:end', 'completed');
  }

  /** The pair could not have called in this time. */
  waitedForNothing(beganAt) {
    if (!this.worksAt) this.inVainMs += Date.now() - Math.max(beganAt, this.struckAt);
  }

  #works(beganAt) {
    if (this.struckAt <= beganAt) this.worksAt ??= Date.now();
  }

  /** Starts measuring the time until a new call works. */
  struck(at) {
    this.struckAt = at;
    this.worksAt = undefined;
    this.inVainMs = 0;
  }
}

/**
 * A pair in a call until a fault strikes. Then the call ends, and the pair is idle until recovery: the presence updates
 * during the fault are the last ones.
 */
export class Resters extends Pair {
  #strikes = new Signal();
  #goesOn = new Signal();
  isResting = false;

  async live({ goesOn }) {
    while (goesOn()) {
      let call;
      try {
        call = await this.ring();
        await this.pickUp(call);
        await this.#strikes.next();
        await pause(LONGEST_UNTIL_END_MS * Math.random());
        await this.end(call, this.caller, 'call:end', 'completed');
      } catch (error) {
        call = this.call;
        await this.clear(call, error).catch((again) => this.ledger.note('failed', again.message, { call: this.story }));
      }
      if (call) this.ledger.judge(call);
      this.isResting = true;
      if (goesOn()) await this.#goesOn.next();
      this.isResting = false;
    }
  }

  struck() {
    this.#strikes.give();
  }

  goOn() {
    this.#goesOn.give();
  }
}

/** A signal for one waiter at a time. A signal without a waiter is kept for the next one. */
class Signal {
  #given = false;
  #resolve;

  async next() {
    if (!this.#given) await new Promise((resolve) => (this.#resolve = resolve));
    this.#given = false;
  }

  give() {
    this.#given = true;
    this.#resolve?.();
  }
}

const heardOf = (device, event, call) => device.next(event, ({ callId }) => callId === call.id);

/** Sends a message, and repeats it when a party has reconnected, as the page does, or when it was not received for long. */
async function untilHeard(heard, sender, say) {
  heard.catch(() => {});
  for (;;) {
    const back = sender.someoneIsBack();
    await say();
    const late = pause(SAID_AGAIN_MS, 'late', { ref: false });
    if (!['late', 'back'].includes(await Promise.race([heard, late, back]))) return;
  }
}

/** `talking` pairs in lasting calls and `dialling` pairs that call repeatedly. */
export class People {
  #goesOn = true;

  constructor(url, ledger, { talking, dialling, resting = Math.ceil(dialling / 2), everyMs = 600 }) {
    this.ledger = ledger;
    this.talkers = Array.from({ length: talking }, () => new Talkers(url, ledger));
    this.dialers = Array.from({ length: dialling }, () => new Dialers(url, ledger));
    this.resters = Array.from({ length: resting }, () => new Resters(url, ledger));
    this.everyMs = everyMs;
  }

  get pairs() {
    return [...this.talkers, ...this.dialers, ...this.resters];
  }

  get devices() {
    return this.pairs.flatMap(({ devices }) => devices);
  }

  async start() {
    await Promise.all(this.devices.map((device) => device.connected()));
    const living = { goesOn: () => this.#goesOn, everyMs: this.everyMs };
    this.lives = this.pairs.map((pair) => pair.live(living));
    this.struck(Date.now());
    await this.recovered();
    const watched = this.resters.flatMap(({ devices }) => devices.map(({ userId }) => userId));
    await Promise.all(this.#watchers.map((device) => device.watch(watched)));
  }

  /** One user of each lasting call watches the idle users, from any node. */
  get #watchers() {
    return this.talkers.map(({ caller }) => caller);
  }

  /** After a fault, checks that each watcher's last status of the users who ended their calls in it is true. */
  async presenceIsTrue() {
    const { resters, ledger } = this;
    await eventually(() => resters.every(({ isResting }) => isResting), 'those who rest have ended their calls', PRESENCE_WITHIN_MS).catch(() => {});
    const resting = resters.filter(({ isResting }) => isResting);
    const wrong = () =>
      this.#watchers.flatMap((watcher) =>
        resting
          .flatMap(({ devices }) => devices)
          .filter(({ userId }) => watcher.presence.get(userId) !== 'online')
          .map(({ userId }) => `${watcher.userId} heard last that ${userId} is ${watcher.presence.get(userId)}`),
      );
    await eventually(() => wrong().length === 0, 'presence is as it was told', PRESENCE_WITHIN_MS).catch(() => {});
    for (const text of wrong()) ledger.note('presence', text);
    for (const pair of resting) pair.goOn();
  }

  struck(at) {
    for (const pair of this.dialers) pair.struck(at);
  }

  /** The idle pairs end their calls. */
  strike() {
    for (const pair of this.resters) pair.struck();
  }

  /** Waits until all devices are connected, all lasting calls continue, and each calling pair has set up a new call. */
  async recovered(within = 60_000) {
    const said = this.talkers.map((pair) => ({ call: pair.call, said: pair.said }));
    const talkOn = (pair, index) => pair.isTalking && (pair.call !== said[index].call || pair.said > said[index].said + 1);
    const isBack = () =>
      this.devices.every(({ socket }) => socket.connected) && this.dialers.every(({ worksAt }) => worksAt) && this.talkers.every(talkOn);
    await eventually(isBack, 'everybody is back', within).catch(() => this.#noteWhoIsNot(talkOn));
  }

  #noteWhoIsNot(talkOn) {
    const away = this.devices.filter(({ socket }) => !socket.connected).length;
    const mute = this.talkers.filter((pair, index) => !talkOn(pair, index));
    const stuck = this.dialers.filter(({ worksAt }) => !worksAt);
    const text = `not all are back: ${away} without a connection, ${mute.length} pairs do not talk, ${stuck.length} set up no call`;
    this.ledger.note('failed', text, { call: [...stuck, ...mute][0]?.story });
  }

  /** The diary of the pair that took longest until a new call worked. */
  storyOfSlowest() {
    const [slowest] = [...this.dialers].sort((one, other) => other.worksAfterMs - one.worksAfterMs);
    const { caller, callee, struckAt, worksAt = Date.now(), worksAfterMs } = slowest;
    const calls = [...this.ledger.calls.values()].filter((call) => call.caller === caller);
    const lines = toldBy([caller, callee, ...calls].map(({ diary }) => diary), struckAt, worksAt);
    return [`the slowest pair took ${worksAfterMs} ms:`, ...lines].join('\n');
  }

  /** The times until a new call worked, of all pairs, sorted. */
  workAgainMs() {
    return this.dialers.map(({ worksAfterMs }) => worksAfterMs).sort((one, other) => one - other);
  }

  /** All pairs complete their current step and end their calls. */
  async stop() {
    this.#goesOn = false;
    this.strike();
    for (const pair of this.resters) pair.goOn();
    await Promise.all(this.lives);
  }

  close() {
    this.#goesOn = false;
    for (const pair of this.pairs) pair.close();
  }
}
