// One Socket.IO connection to the server. Knows nothing of media or the page.
//
// Use it like this:
//
//   const signaling = new Signaling({ userId: 'alice', deviceId: 'a-stable-id-of-this-tab' });
//   signaling.addEventListener('call:incoming', ({ detail }) => …);
//   const { callId } = await signaling.initiate({ toUserId: 'bob', callType: 'video' });
//
// Events:
//   status            { status, message? }   connecting, connected, reconnecting, offline, refused
//   the server's own events under their own names (SERVER_EVENTS), the payload in `detail`
//
// Every request uses an acknowledgement of Socket.IO, so a refusal is a rejected promise with a SignalingError.

const SERVER_EVENTS = [
  'call:incoming', // fromUserId, callId, callType, callerInfo, timestamp, expiresAt
  'call:ringing', // callId, toUserId, devices, expiresAt
  'call:offer', // callId, fromUserId, offer
  'call:answer', // callId, fromUserId, answer
  'call:ice-candidate', // callId, fromUserId, candidate
  'call:rejected', // callId, fromUserId, reason?
  'call:busy', // callId, fromUserId, message
  'call:ended', // callId, fromUserId, duration, reason
  'call:error', // type, message, …: only for what was sent without an acknowledgement
  'call:resumed', // callId, caller, receiver, callType, status, startedAt?, …
  'call:peer-reconnecting', // callId, fromUserId, graceEndsAt
  'call:peer-reconnected', // callId, fromUserId
  'presence:update', // userId, status
  'auth:expiring', // expiresAt: see refresh()
  'server:draining', // reconnectWithinMs
];

const RELAYS = new Set(['call:offer', 'call:answer', 'call:ice-candidate']);

const ANSWER_WITHIN_MS = 8_000;
const RECONNECT_AFTER_DISCONNECT_MS = 2_000;

/** A refusal of the server (its `call:error` types), or NOT_CONNECTED if there was no connection. */
export class SignalingError extends Error {
  constructor({ type, message, ...details }) {
    super(message);
    this.name = 'SignalingError';
    this.type = type;
    Object.assign(this, details); // callId, toUserId, event, retryAfterMs
  }
}

export class Signaling extends EventTarget {
  status = 'connecting';
  #socket;
  #outbox = new Set();

  constructor({ userId, deviceId, token, url = location.origin }) {
    super();
    this.userId = userId;
    this.#socket = globalThis.io(url, {
      // The same deviceId after a lost connection or a reload resumes the call.
      auth: { userId, deviceId, token },
      transports: ['websocket', 'polling'],
      tryAllTransports: true,
      // The grace period of a lost device is 10 s: reconnect fast enough.
      reconnectionDelay: 400,
      reconnectionDelayMax: 2_000,
    });
    for (const event of SERVER_EVENTS) {
      this.#socket.on(event, (payload) => this.#dispatch(event, payload ?? {}));
    }
    this.#socket.on('connect', () => {
      this.#setStatus('connected');
      for (const letter of this.#outbox) this.#post(letter);
    });
    this.#socket.on('connect_error', (error) => {
      // Active: the server was unreachable and the library retries. Inactive: the server refused.
      this.#setStatus(this.#socket.active ? 'offline' : 'refused', error.message);
    });
    this.#socket.on('disconnect', (reason) => {
      if (reason === 'io client disconnect') return;
      this.#setStatus(navigator.onLine ? 'reconnecting' : 'offline');
      // After a disconnect by the server the library does not reconnect by itself.
      if (reason === 'io server disconnect') setTimeout(() => this.#socket.connect(), RECONNECT_AFTER_DISCONNECT_MS);
    });
  }

  get connected() {
    return this.#socket.connected;
  }

  /** Leaves on purpose: a live call of this device ends at once. */
  close() {
    this.#socket.disconnect();
    this.#outbox.clear();
  }

  // ---- the call ----------------------------------------------------------------------------------------------------
  // Unacknowledged requests are repeated after a reconnect. All of them may arrive twice: `clientCallId` makes an initiate
  // idempotent, ends are idempotent, and a peer connection ignores an answer that it does not expect.

  /** Rings somebody. Resolves to { callId, status, expiresAt?, reason? }. */
  initiate({ toUserId, callType, callerInfo, clientCallId }) {
    return this.#deliver('call:initiate', { toUserId, callType, callerInfo, clientCallId });
  }

  offer({ callId, toUserId }, offer) {
    return this.#deliver('call:offer', { callId, toUserId, offer });
  }

  /** The first answer of a ringing call accepts it on this device. */
  answer({ callId, toUserId }, answer) {
    return this.#deliver('call:answer', { callId, toUserId, answer });
  }

  iceCandidate({ callId, toUserId }, candidate) {
    return this.#deliver('call:ice-candidate', { callId, toUserId, candidate });
  }

  reject({ callId, toUserId }) {
    return this.#deliver('call:reject', { callId, toUserId });
  }

  end({ callId, toUserId }) {
    return this.#deliver('call:end', { callId, toUserId });
  }

  /** Drops the queued offers, answers and candidates of an ended call. The end itself is still sent. */
  forget(callId) {
    for (const letter of this.#outbox) {
      if (letter.payload.callId === callId && RELAYS.has(letter.event)) this.#outbox.delete(letter);
    }
  }

  // ---- requests that are not repeated --------------------------------------------------------------------------

  /** The state of a call, or of this user's live call: { call: {…} | null }. */
  sync(callId) {
    return this.request('call:sync', { callId });
  }

  stats(report) {
    return this.request('call:stats', report);
  }

  /** The configuration of RTCPeerConnection: { iceServers, ttl }. */
  iceServers() {
    return this.request('ice:servers');
  }

  /**
   * `onPresence` gets { userId: 'online' | 'offline' | 'busy' }, in its turn among the events: changes follow as
   * presence:update, and may come before a promise of the answer is resolved.
   */
  watchPresence(userIds, onPresence) {
    return this.#ask('presence:subscribe', [{ userIds }], ({ presence }) => onPresence(presence));
  }

  unwatchPresence(userIds) {
    return this.request('presence:unsubscribe', { userIds });
  }

  /** Presents a new token of the same user, for example after `auth:expiring`. Resolves to { expiresAt }. */
  refresh(token) {
    this.#socket.auth.token = token;
    return this.request('auth:refresh', { token });
  }

  request(event, ...payload) {
    return this.#ask(event, payload);
  }

  async #ask(event, payload, onAnswer = () => {}) {
    if (!this.connected) throw new SignalingError({ type: 'NOT_CONNECTED', message: 'there is no connection' });
    let answer;
    try {
      answer = await new Promise((resolve, reject) => {
        this.#socket.timeout(ANSWER_WITHIN_MS).emit(event, ...payload, (error, answered) => {
          if (error) return reject(error);
          if (answered?.ok) onAnswer(answered);
          return resolve(answered);
        });
      });
    } catch (error) {
      // No reply on an open connection: the network is gone, unnoticed. Closing the transport alone makes the library
      // reconnect, and the server sees the same device return.
      if (this.connected) this.#socket.io.engine.close();
      throw new SignalingError({ type: 'NOT_CONNECTED', message: error.message });
    }
    if (!answer?.ok) throw new SignalingError(answer?.error ?? { type: 'UNKNOWN', message: 'no answer' });
    return answer;
  }

  #deliver(event, payload) {
    return new Promise((resolve, reject) => {
      const letter = { event, payload, resolve, reject };
      this.#outbox.add(letter);
      this.#post(letter);
    });
  }

  async #post(letter) {
    if (!this.#outbox.has(letter)) return;
    try {
      const answer = await this.request(letter.event, letter.payload);
      this.#outbox.delete(letter);
      letter.resolve(answer);
    } catch (error) {
      if (error.type === 'NOT_CONNECTED') return; // stays in the outbox until the next `connect`
      if (error.retryAfterMs) {
        setTimeout(() => this.#post(letter), error.retryAfterMs);
        return;
      }
      this.#outbox.delete(letter);
      letter.reject(error);
    }
  }

  #setStatus(status, message) {
    this.status = status;
    this.#dispatch('status', { status, message });
  }

  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
