// The wire: one Socket.IO connection to the server, and nothing about pictures, sound or the page.
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
// Every request uses the acknowledgement of Socket.IO, so a refusal arrives where the question was asked,
// as a rejected promise with a SignalingError.

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
const RETURN_AFTER_DISMISSAL_MS = 2_000;

/** What the server refused (its `call:error` types), or NOT_CONNECTED when it could not be asked. */
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
      // The same deviceId after a lost connection or a reload is what brings a call back.
      auth: { userId, deviceId, token },
      transports: ['websocket', 'polling'],
      tryAllTransports: true,
      // The server waits about ten seconds for a lost device: try often enough to be back by then.
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
      // Still active: the server was out of reach and the library tries again. Not active: the server said no.
      this.#setStatus(this.#socket.active ? 'offline' : 'refused', error.message);
    });
    this.#socket.on('disconnect', (reason) => {
      if (reason === 'io client disconnect') return;
      this.#setStatus(navigator.onLine ? 'reconnecting' : 'offline');
      // After a dismissal by the server the library does not come back by itself.
      if (reason === 'io server disconnect') setTimeout(() => this.#socket.connect(), RETURN_AFTER_DISMISSAL_MS);
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
  // These are delivered even if the connection is lost on the way: what the server has not acknowledged is sent again
  // when it is back. That is safe, because each of them may arrive twice: `clientCallId` names an initiate, an end is
  // idempotent, and a peer connection ignores an answer it does not wait for.

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

  /** Drops what still waits to be passed on in a call that is over. That it is over will be said all the same. */
  forget(callId) {
    for (const letter of this.#outbox) {
      if (letter.payload.callId === callId && RELAYS.has(letter.event)) this.#outbox.delete(letter);
    }
  }

  // ---- questions: asked now or not at all --------------------------------------------------------------------------

  /** The state of a call, or of this user's live call: { call: {…} | null }. */
  sync(callId) {
    return this.request('call:sync', { callId });
  }

  stats(report) {
    return this.request('call:stats', report);
  }

  /** What RTCPeerConnection wants to know: { iceServers, ttl }. */
  iceServers() {
    return this.request('ice:servers');
  }

  /** Resolves to { presence: { userId: 'online' | 'offline' | 'busy' } }; changes follow as presence:update. */
  watchPresence(userIds) {
    return this.request('presence:subscribe', { userIds });
  }

  unwatchPresence(userIds) {
    return this.request('presence:unsubscribe', { userIds });
  }

  /** Shows a new token of the same user, for example after `auth:expiring`. Resolves to { expiresAt }. */
  refresh(token) {
    this.#socket.auth.token = token;
    return this.request('auth:refresh', { token });
  }

  async request(event, ...payload) {
    if (!this.connected) throw new SignalingError({ type: 'NOT_CONNECTED', message: 'there is no connection' });
    let answer;
    try {
      answer = await this.#socket.timeout(ANSWER_WITHIN_MS).emitWithAck(event, ...payload);
    } catch (error) {
      // Silence on an open connection: the network is gone and nobody has noticed. Closing only the transport
      // makes the library connect anew, and the server takes it for the same device coming back.
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
