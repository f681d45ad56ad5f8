// WebRTC: one RTCPeerConnection with perfect negotiation. It knows neither the server nor the page.
//
// Either side may change its tracks at any time, and both may offer. When two offers collide, the polite side rolls its own
// back. See https://w3c.github.io/webrtc-pc/#perfect-negotiation-example.
//
// Events:
//   description   detail: {type, sdp}            to be sent to the other side
//   candidate     detail: {candidate, …} | null  to be sent to the other side; null ends the candidates
//   media         the remote tracks changed: read remoteTrack()
//   state         the connection's state changed: read state

const DISCONNECTED_FOR_MS = 3_000;
const FIRST_CANDIDATE_MS = 1_000;

export class Peer extends EventTarget {
  #connection;
  #polite;
  #tracks;
  #makingOffer = false;
  #ignoringOffer = false;
  #remoteSession = null;
  #earlyCandidates = [];
  #restartTimer;
  #lookedAround;

  /** `tracks` are the local { audio, video }, each a MediaStreamTrack or null. `relayOnly`: through a TURN server. */
  constructor({ polite, iceServers, relayOnly, tracks }) {
    super();
    this.#polite = polite;
    this.#tracks = { ...tracks };
    this.#connection = new RTCPeerConnection({ iceServers, iceTransportPolicy: relayOnly ? 'relay' : 'all' });
    this.#connection.onnegotiationneeded = () => this.#offer();
    this.#lookedAround = new Promise((found) => {
      this.#connection.onicecandidate = ({ candidate }) => {
        found();
        this.#emit('candidate', candidate?.toJSON() ?? null);
      };
    });
    this.#connection.onconnectionstatechange = () => this.#stateChanged();
  }

  /** 'new', 'connecting', 'connected', 'disconnected', 'failed' or 'closed'. */
  get state() {
    return this.#connection.connectionState;
  }

  /** Creates the first offer, for the media in `kinds`; a kind without a local track is receive-only. */
  start(kinds) {
    for (const kind of kinds) {
      if (this.#tracks[kind]) this.#connection.addTrack(this.#tracks[kind]);
      else this.#connection.addTransceiver(kind, { direction: 'recvonly' });
    }
  }

  /**
   * Sends this track from now on, or nothing of this kind if it is null. Replacing a track needs no negotiation;
   * starting and stopping does, so that the other side knows.
   */
  async setTrack(kind, track) {
    this.#tracks[kind] = track;
    await this.#attach(kind);
  }

  /**
   * Applies the other side's description, and answers an offer.
   *
   * False if it comes from another RTCPeerConnection than before, because the other page was reloaded: its keys differ, so
   * this connection is unusable. Create a new Peer; it accepts the same description if it is an offer.
   */
  async receive(description) {
    const connection = this.#connection;
    if (description.type === 'offer') {
      const collision = this.#makingOffer || connection.signalingState !== 'stable';
      this.#ignoringOffer = collision && !this.#polite;
      if (this.#ignoringOffer) return true;
      // Chromium gathers no candidates if an offer is rolled back while it still enumerates networks.
      if (collision) await Promise.race([this.#lookedAround, wait(FIRST_CANDIDATE_MS)]);
    }
    const session = sessionOf(description);
    if (this.#remoteSession !== null && this.#remoteSession !== session) return false;
    // An unexpected answer belongs to an offer that was rolled back, or arrived twice.
    if (description.type === 'answer' && connection.signalingState !== 'have-local-offer') return true;

    await connection.setRemoteDescription(description); // rolls back an own offer that collided
    this.#remoteSession = session;
    for (const candidate of this.#earlyCandidates.splice(0)) await this.#add(candidate);
    if (description.type === 'offer') {
      await this.#attach('audio');
      await this.#attach('video');
      await connection.setLocalDescription();
      this.#emit('description', connection.localDescription.toJSON());
    }
    this.#emit('media');
    return true;
  }

  /** Applies a candidate of the other side. Candidates before its description are buffered. */
  async addCandidate(candidate) {
    if (this.#connection.remoteDescription) await this.#add(candidate);
    else this.#earlyCandidates.push(candidate);
  }

  /** Uses these servers for later ICE restarts. The present path stays. */
  use(iceServers) {
    this.#connection.setConfiguration({ ...this.#connection.getConfiguration(), iceServers });
  }

  /** After an interruption of the signaling: repeats messages that may have been lost. */
  resend() {
    if (this.#connection.signalingState === 'have-local-offer') {
      this.#emit('description', this.#connection.localDescription.toJSON());
    }
  }

  /** Restarts ICE if media does not flow. */
  restartUnlessConnected() {
    if (this.state !== 'connected' && this.#connection.remoteDescription) this.#connection.restartIce();
  }

  /** The remote track of this kind, or null. */
  remoteTrack(kind) {
    const receiving = this.#transceivers(kind).findLast(({ currentDirection }) => currentDirection?.includes('recv'));
    return receiving?.receiver.track ?? null;
  }

  getStats() {
    return this.#connection.getStats();
  }

  close() {
    clearTimeout(this.#restartTimer);
    this.#connection.onnegotiationneeded = null;
    this.#connection.onicecandidate = null;
    this.#connection.onconnectionstatechange = null;
    this.#connection.close();
  }

  async #offer() {
    try {
      this.#makingOffer = true;
      await this.#connection.setLocalDescription();
      this.#emit('description', this.#connection.localDescription.toJSON());
    } catch (error) {
      if (this.state !== 'closed') console.warn('no offer could be made', error);
    } finally {
      this.#makingOffer = false;
    }
  }

  async #attach(kind) {
    const track = this.#tracks[kind];
    const transceivers = this.#transceivers(kind);
    const transceiver = transceivers.find(({ sender }) => sender.track) ?? transceivers[0];
    if (!transceiver) {
      if (track) this.#connection.addTrack(track);
      return;
    }
    if (transceiver.sender.track !== track) await transceiver.sender.replaceTrack(track);
    const direction = track ? 'sendrecv' : 'recvonly';
    if (transceiver.direction !== direction) transceiver.direction = direction;
  }

  async #add(candidate) {
    try {
      await this.#connection.addIceCandidate(candidate || undefined); // null and '' end the candidates
    } catch (error) {
      // Candidates of an ignored offer, or of a replaced connection, do not apply.
      if (!this.#ignoringOffer) console.debug('a candidate was of no use', error);
    }
  }

  #stateChanged() {
    clearTimeout(this.#restartTimer);
    if (this.state === 'failed') this.#connection.restartIce();
    if (this.state === 'disconnected') {
      this.#restartTimer = setTimeout(() => this.restartUnlessConnected(), DISCONNECTED_FOR_MS);
    }
    this.#emit('state');
  }

  #transceivers(kind) {
    return this.#connection
      .getTransceivers()
      .filter(({ receiver, currentDirection }) => receiver.track.kind === kind && currentDirection !== 'stopped');
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function wait(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Identifies the RTCPeerConnection of a description: the session id of the origin line, constant for its lifetime. */
function sessionOf({ sdp }) {
  return /^o=\S+ (\S+)/m.exec(sdp)?.[1] ?? '';
}
