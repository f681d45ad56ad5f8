// One call in this page: its media devices, its Peer, and its phase.
//
// phase      preparing   the devices are being opened, the server was not asked yet
//            outgoing    it rings at the other side
//            incoming    it rings here
//            joining     accepted here; the answer is being sent
//            active      both are in it
//            ended       `ended` has the reason
//
// Events:
//   change     the phase or another property changed
//   problem    detail: an Error or the name of a problem (words.js); the call continues
//   refused    detail: SignalingError; the server refused a message

import { openCamera, openDevices, openScreen } from './media.js';
import { Peer } from './peer.js';
import { StatsReporter } from './stats.js';
import { read, write } from './storage.js';

const STATS_EVERY_MS = 10_000;
const ICE_SERVERS_PART = 0.8; // of their lifetime
const ICE_SERVERS_RETRY_S = 30;
const REMEMBERED = 'switchboard.call';
/** With `?relay` in the address calls use relayed paths only: a test of the TURN servers. */
const RELAY_ONLY = new URLSearchParams(location.search).has('relay');

export class Call extends EventTarget {
  phase;
  startedAt = null;
  ended = null;
  ringsOn = null; // on how many devices of the other side
  otherIsAway = false;
  muted = false;

  #signaling;
  #peer = null;
  #microphone = null;
  #camera = null;
  #screen = null;
  #opening = false;
  #held = { offer: null, candidates: [] };
  #turn = Promise.resolve();
  #iceServers = [];
  #iceServersTimer;
  #stats;
  #statsTimer;

  /** `other` is the user id of the other side, `direction` is 'outgoing' or 'incoming', as in the history. */
  constructor({ signaling, id = null, other, otherName = other, type, direction, phase }) {
    super();
    this.#signaling = signaling;
    Object.assign(this, { id, other, otherName, type, direction, phase });
  }

  /** Whether the microphone was muted and the camera on before this page was reloaded during that call. */
  static remembered(id) {
    const state = JSON.parse(read('sessionStorage', REMEMBERED) ?? 'null');
    return state?.id === id ? state : { muted: false, camera: false };
  }

  get address() {
    return { callId: this.id, toUserId: this.other };
  }

  get over() {
    return this.phase === 'ended';
  }

  get cameraOn() {
    return this.#camera !== null;
  }

  get sharingScreen() {
    return this.#screen !== null;
  }

  get localVideo() {
    return this.#screen ?? this.#camera;
  }

  get remoteAudio() {
    return this.#peer?.remoteTrack('audio') ?? null;
  }

  get remoteVideo() {
    return this.#peer?.remoteTrack('video') ?? null;
  }

  /** The state of the media path; see Peer. */
  get mediaState() {
    return this.#peer?.state ?? 'new';
  }

  getStats() {
    return this.#peer.getStats();
  }

  // ---- phases ----------------------------------------------------------------------------------------------

  enter(phase) {
    this.phase = phase;
    this.#changed();
  }

  begin(startedAt = Date.now()) {
    this.startedAt = startedAt;
    this.#statsTimer = setInterval(() => this.#reportStats(), STATS_EVERY_MS);
    this.enter('active');
  }

  end({ reason, byMe, duration = null }) {
    this.ended = { reason, byMe, answered: this.startedAt !== null, duration: duration ?? this.#secondsSoFar() };
    clearInterval(this.#statsTimer);
    clearTimeout(this.#iceServersTimer);
    this.#peer?.close();
    for (const track of [this.#microphone, this.#camera, this.#screen]) track?.stop();
    this.#peer = this.#microphone = this.#camera = this.#screen = null;
    write('sessionStorage', REMEMBERED, null);
    this.enter('ended');
  }

  // ---- devices -----------------------------------------------------------------------------------------------------

  async open({ video, muted = false }) {
    const { audio, video: camera, problem } = await openDevices({ video });
    this.muted = muted;
    this.#keep({ microphone: audio, camera });
    if (problem) this.#emit('problem', 'no_camera');
  }

  async setMuted(muted) {
    if (!muted && !this.#microphone) {
      // It could not be opened before: try again.
      await this.#once(async () => this.#keep({ microphone: (await openDevices({ video: false })).audio }));
      await this.#peer?.setTrack('audio', this.#microphone);
    }
    this.muted = muted;
    if (this.#microphone) this.#microphone.enabled = !muted;
    this.#remember();
    this.#changed();
  }

  /** Turning it off releases the camera, so that its light goes out. An audio call can turn it on. */
  async setCamera(on) {
    if (on) {
      await this.#once(async () => this.#keep({ camera: await openCamera() }));
    } else {
      this.#camera?.stop();
      this.#camera = null;
    }
    await this.#videoChanged();
  }

  async setScreen(on) {
    if (on) {
      await this.#once(async () => this.#keep({ screen: await openScreen() }));
    } else {
      this.#screen?.stop();
      this.#screen = null;
    }
    await this.#videoChanged();
  }

  /** Devices open slowly, after a prompt: one at a time. */
  async #once(open) {
    if (this.#opening) return;
    this.#opening = true;
    try {
      await open();
    } finally {
      this.#opening = false;
    }
  }

  #keep({ microphone, camera, screen }) {
    if (this.over) {
      for (const track of [microphone, camera, screen]) track?.stop(); // hung up meanwhile
      return;
    }
    if (microphone) {
      this.#microphone = microphone;
      microphone.enabled = !this.muted;
      microphone.onended = () => this.#emit('problem', 'microphone_lost');
    }
    if (camera) {
      this.#camera = camera;
      camera.onended = () => {
        this.#emit('problem', 'camera_lost');
        this.setCamera(false);
      };
    }
    if (screen) {
      this.#screen = screen;
      screen.onended = () => this.setScreen(false); // by the browser's own button
    }
    this.#changed();
  }

  async #videoChanged() {
    this.#remember();
    this.#changed();
    await this.#peer?.setTrack('video', this.localVideo);
  }

  #remember() {
    if (this.over) return;
    write('sessionStorage', REMEMBERED, JSON.stringify({ id: this.id, muted: this.muted, camera: this.cameraOn }));
  }

  // ---- the connection to the other side -----------------------------------------------------------------------------------

  /** Creates the Peer. One side offers; the other waits for the offer, or has buffered it since it rang. */
  async connect({ offering }) {
    await this.#fetchIceServers();
    if (this.over) return;
    this.#remember();
    this.#build({ offering });
    const { offer, candidates } = this.#held;
    this.#held = { offer: null, candidates: [] };
    if (offer) this.receiveDescription(offer);
    for (const candidate of candidates) this.receiveCandidate(candidate);
  }

  /** An offer or an answer of the other side. */
  receiveDescription(description) {
    this.#inTurn(async () => {
      if (!this.#peer) return this.#hold(description);
      if (await this.#peer.receive(description)) return;
      // The other page was reloaded and has a new connection, so this one needs a new one too.
      this.#build({ offering: description.type === 'answer' });
      if (description.type === 'offer') await this.#peer.receive(description);
    });
  }

  receiveCandidate(candidate) {
    this.#inTurn(async () => {
      if (this.#peer) await this.#peer.addCandidate(candidate);
      else this.#held.candidates.push(candidate);
    });
  }

  /** After this side has returned. Only the returning side restarts ICE, so that not both do. */
  recover() {
    this.#peer?.resend();
    this.#peer?.restartUnlessConnected();
  }

  otherAway() {
    this.otherIsAway = true;
    this.#changed();
  }

  otherBack() {
    this.otherIsAway = false;
    this.#peer?.resend();
    this.#changed();
  }

  /** Requests the ICE servers, and again before they expire: a later restart needs valid credentials. */
  async #fetchIceServers() {
    let ttl = ICE_SERVERS_RETRY_S;
    try {
      ({ iceServers: this.#iceServers, ttl } = await this.#signaling.iceServers());
    } catch {
      // Within one network a call works without them, and earlier ones stay valid for a while.
    }
    if (this.over) return;
    this.#peer?.use(this.#iceServers);
    clearTimeout(this.#iceServersTimer);
    this.#iceServersTimer = setTimeout(() => this.#fetchIceServers(), ttl * 1_000 * ICE_SERVERS_PART);
  }

  #build({ offering }) {
    this.#peer?.close();
    const peer = new Peer({
      polite: this.direction === 'incoming',
      iceServers: this.#iceServers,
      relayOnly: RELAY_ONLY,
      tracks: { audio: this.#microphone, video: this.localVideo },
    });
    this.#peer = peer;
    this.#stats = new StatsReporter();
    peer.addEventListener('description', ({ detail }) => this.#send(detail));
    peer.addEventListener('candidate', ({ detail }) => {
      this.#signaling.iceCandidate(this.address, detail).catch((error) => this.#emit('refused', error));
    });
    peer.addEventListener('media', () => this.#changed());
    peer.addEventListener('state', () => this.#changed());
    if (offering) peer.start(this.type === 'video' || this.localVideo ? ['audio', 'video'] : ['audio']);
    this.#changed();
  }

  async #send(description) {
    try {
      if (description.type === 'offer') {
        await this.#signaling.offer(this.address, description);
      } else {
        await this.#signaling.answer(this.address, description);
        if (this.phase === 'joining') this.begin(); // this device won the call
      }
    } catch (error) {
      this.#emit('refused', error);
    }
  }

  /** While it rings here, only the last offer counts. */
  #hold(offer) {
    if (this.#held.offer) this.#held.candidates = [];
    this.#held.offer = offer;
  }

  /** Handles messages of the other side in order. */
  #inTurn(task) {
    this.#turn = this.#turn
      .then(() => (this.over ? undefined : task()))
      .catch((error) => this.over || console.warn('negotiation failed', error));
  }

  // ---- helpers ------------------------------------------------------------------------------------------------

  async #reportStats() {
    if (!this.#peer || !this.#signaling.connected) return;
    try {
      await this.#signaling.stats({ callId: this.id, ...(await this.#stats.report(this.#peer)) });
    } catch {
      // one report may fail
    }
  }

  #secondsSoFar() {
    return this.startedAt === null ? 0 : Math.max(0, Math.floor((Date.now() - this.startedAt) / 1000));
  }

  #changed() {
    this.#emit('change');
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
