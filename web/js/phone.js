// The telephone: at most one call at a time, by the rules of the protocol.
//
// Events:
//   change     `call` or one of its properties changed
//   problem    detail: an Error or the name of a problem, for words.js
//   over       detail: the Call that just ended

import { Call } from './call.js';
import { randomId } from './identity.js';

export class Phone extends EventTarget {
  /** The live call, or the one that ended last until it is dismissed. */
  call = null;

  #signaling;
  #early = []; // events of a call whose id this page does not know yet
  #crossing = null; // a call that came in while this page was dialling
  #left = new Set(); // calls that this page ended, perhaps unknown to the server yet

  constructor(signaling) {
    super();
    this.#signaling = signaling;
    signaling.addEventListener('status', ({ detail }) => {
      if (detail.status === 'connected') this.#checkAfterReconnect();
    });
    signaling.addEventListener('call:incoming', ({ detail }) => this.#incoming(detail));
    signaling.addEventListener('call:resumed', ({ detail }) => this.#resumed(detail));
    for (const event of Object.keys(this.#handlers)) {
      signaling.addEventListener(event, ({ detail }) => this.#handle(event, detail));
    }
  }

  get #live() {
    return this.call?.over ? null : this.call;
  }

  // ---- actions of the user ----------------------------------------------------------------------------------------

  async dial(other, type) {
    if (this.#live) return;
    const call = this.#take({ other, type, direction: 'outgoing', phase: 'preparing' });
    // The devices first: nobody should be rung by a caller without media.
    try {
      await call.open({ video: type === 'video' });
    } catch (error) {
      if (!call.over) this.#drop(call, error);
    }
    if (call.over) return;
    call.enter('outgoing');
    try {
      const answer = await this.#signaling.initiate({
        toUserId: other,
        callType: type,
        callerInfo: { name: this.#signaling.userId },
        clientCallId: randomId(),
      });
      await this.#dialled(call, answer);
    } catch (error) {
      await this.#notDialled(call, error);
    }
    if (this.#crossing && !this.#live) this.#incoming(this.#crossing);
    this.#crossing = null;
    this.#early = [];
  }

  async accept({ video }) {
    const call = this.#live;
    if (call?.phase !== 'incoming') return;
    call.enter('joining');
    try {
      await call.open({ video });
    } catch (error) {
      if (call.over) return;
      call.enter('incoming'); // it still rings: try again, or decline
      this.#problem(error);
      return;
    }
    await this.#connect(call, { offering: false });
  }

  decline() {
    const call = this.#live;
    if (call?.phase !== 'incoming') return;
    this.#signaling.reject(call.address).catch(() => {});
    this.#finish(call, { reason: 'declined', byMe: true });
  }

  /** Ends the call in any phase: cancels, declines or hangs up. */
  hangUp() {
    const call = this.#live;
    if (!call) return;
    const before = call.direction === 'outgoing' ? 'cancelled' : 'declined';
    // Without an id the initiate has no reply yet: #dialled ends the call then.
    if (call.id) this.#signaling.end(call.address).catch(() => {});
    this.#finish(call, { reason: call.startedAt === null ? before : 'completed', byMe: true });
  }

  setMuted(muted) {
    return this.#change((call) => call.setMuted(muted));
  }

  setCamera(on) {
    return this.#change((call) => call.setCamera(on));
  }

  setScreen(on) {
    return this.#change((call) => call.setScreen(on));
  }

  async #change(what) {
    if (!this.#live) return;
    try {
      await what(this.#live);
    } catch (error) {
      this.#problem(error);
    }
  }

  /** Forgets an ended call. */
  dismiss() {
    if (this.#live) return;
    this.call = null;
    this.#changed();
  }

  // ---- dialling ----------------------------------------------------------------------------------------------------

  async #dialled(call, { callId, status, reason }) {
    call.id = callId;
    if (call.over) {
      this.#left.add(callId);
      if (status === 'pending') this.#signaling.end(call.address).catch(() => {});
      return;
    }
    if (status !== 'pending') {
      this.#finish(call, { reason });
      return;
    }
    this.#replayEarly();
    if (!call.over) await this.#connect(call, { offering: true });
  }

  async #notDialled(call, error) {
    if (call.over) return;
    if (error.type === 'RECIPIENT_OFFLINE') {
      call.id = error.callId;
      this.#finish(call, { reason: 'offline' });
    } else if (error.type === 'GLARE') {
      // Both dialled each other. The other call survived and rings here: accept it.
      call.id = error.callId;
      call.direction = 'incoming';
      call.type = this.#crossing?.callType ?? call.type;
      this.#crossing = null;
      call.enter('joining');
      this.#replayEarly();
      await this.#connect(call, { offering: false });
    } else {
      this.#drop(call, error);
    }
  }

  #replayEarly() {
    for (const [event, detail] of this.#early.splice(0)) this.#handle(event, detail);
  }

  // ---- events of the server ----------------------------------------------------------------------------------------

  #handlers = {
    'call:ringing': (call, { devices }) => {
      call.ringsOn = devices;
      this.#changed();
    },
    'call:offer': (call, { offer }) => call.receiveDescription(offer),
    'call:answer': (call, { answer }) => {
      if (call.phase === 'outgoing') call.begin();
      call.receiveDescription(answer);
    },
    'call:ice-candidate': (call, { candidate }) => call.receiveCandidate(candidate),
    'call:rejected': (call) => this.#finish(call, { reason: 'declined' }),
    'call:busy': (call) => this.#finish(call, { reason: 'busy' }),
    'call:ended': (call, { reason, duration }) => this.#finish(call, { reason: reason ?? 'completed', duration }),
    'call:peer-reconnecting': (call) => call.otherAway(),
    'call:peer-reconnected': (call) => call.otherBack(),
  };

  #handle(event, detail) {
    const call = this.#live;
    if (!call) return;
    if (call.id === null) this.#early.push([event, detail]);
    else if (call.id === detail.callId) this.#handlers[event](call, detail);
  }

  #incoming({ callId, fromUserId, callType, callerInfo }) {
    const live = this.#live;
    if (live?.phase === 'preparing') {
      this.#finish(live, { reason: 'cancelled', byMe: true }); // nobody was rung yet
    } else if (live?.id === null) {
      this.#crossing = { callId, fromUserId, callType, callerInfo }; // the reply to the initiate decides
      return;
    } else if (live) {
      return; // repeated after a reconnect
    }
    this.#take({
      id: callId,
      other: fromUserId,
      otherName: typeof callerInfo?.name === 'string' && callerInfo.name ? callerInfo.name : fromUserId,
      type: callType,
      direction: 'incoming',
      phase: 'incoming',
    });
    this.#replayEarly();
  }

  /** This device is back in its live call: after a lost connection, or after a reload, which lost the Peer. */
  async #resumed(info) {
    const live = this.#live;
    if (live?.id === info.callId) {
      live.otherIsAway = info.graceEndsAt !== undefined;
      live.recover();
      this.#changed();
      return;
    }
    if (live || this.#left.has(info.callId)) return;

    const outgoing = info.caller === this.#signaling.userId;
    const call = this.#take({
      id: info.callId,
      other: outgoing ? info.receiver : info.caller,
      type: info.callType,
      direction: outgoing ? 'outgoing' : 'incoming',
      phase: 'outgoing',
    });
    const { muted, camera } = Call.remembered(info.callId);
    call.muted = muted;
    call.otherIsAway = info.graceEndsAt !== undefined;
    if (info.status === 'answered') call.begin(info.startedAt);
    try {
      await call.open({ video: camera, muted });
    } catch (error) {
      if (call.over) return;
      call.muted = true;
      this.#problem(error); // listening and hanging up still work
    }
    if (!call.over) await this.#connect(call, { offering: true });
  }

  /** The call may have ended while the server was unreachable. */
  async #checkAfterReconnect() {
    const call = this.#live;
    if (!call?.id) return;
    try {
      const { call: info } = await this.#signaling.sync(call.id);
      if (call.over) return;
      if (info === null) this.#finish(call, { reason: 'connection_lost' });
      else if (!['pending', 'answered'].includes(info.status)) this.#finish(call, { reason: info.reason });
      else if (info.status === 'answered' && call.phase === 'incoming') {
        this.#finish(call, { reason: 'answered_elsewhere' });
      }
    } catch {
      // lost again: repeated at the next connection
    }
  }

  // ---- beginnings and ends -----------------------------------------------------------------------------------------

  #take(properties) {
    const call = new Call({ signaling: this.#signaling, ...properties });
    this.call = call;
    call.addEventListener('change', () => this.#changed());
    call.addEventListener('problem', ({ detail }) => this.#problem(detail));
    call.addEventListener('refused', ({ detail }) => this.#refused(call, detail));
    this.#changed();
    return call;
  }

  async #connect(call, role) {
    try {
      await call.connect(role);
    } catch (error) {
      this.#problem(error);
      this.hangUp();
    }
  }

  #refused(call, error) {
    if (call.over) return;
    if (error.type === 'ALREADY_ANSWERED') this.#finish(call, { reason: 'answered_elsewhere' });
    else if (error.type === 'NO_ACTIVE_CALL') this.#checkAfterReconnect();
    else this.#problem(error);
  }

  #finish(call, { reason, byMe = false, duration }) {
    if (call.over) return;
    if (call.id) {
      this.#signaling.forget(call.id);
      this.#left.add(call.id);
    }
    call.end({ reason, byMe, duration });
    this.dispatchEvent(new CustomEvent('over', { detail: call }));
  }

  /** The call failed before it existed: the history has no row. */
  #drop(call, error) {
    call.end({ reason: 'failed', byMe: true });
    this.call = null;
    this.#problem(error);
    this.#changed();
  }

  #problem(detail) {
    this.dispatchEvent(new CustomEvent('problem', { detail }));
  }

  #changed() {
    this.dispatchEvent(new Event('change'));
  }
}
