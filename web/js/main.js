// Wires the page: identity, connection, telephone, and the views.
//
//   identity → Signaling (the connection) → Phone (the rules) → Call (one call) → Peer (WebRTC)
//                   └→ Presence, CallHistory             the views in ui/ depend on none of the above

import { CallHistory } from './history.js';
import {
  claimDeviceId,
  forgetName,
  nameProblem,
  ownName,
  ownToken,
  rememberName,
  suggestedName,
  suggestedPeer,
} from './identity.js';
import { Phone } from './phone.js';
import { Presence } from './presence.js';
import { ring } from './ringtone.js';
import { Signaling } from './signaling.js';
import { problemWords } from './words.js';
import { CallView } from './ui/call.js';
import { HistoryView } from './ui/history.js';
import { HomeView } from './ui/home.js';

const PRESENCE_AFTER_TYPING_MS = 300;
const HISTORY_TRIES_MS = [0, 500, 2_000];

const deviceId = await claimDeviceId();
let session = null; // { me, signaling, phone, presence, history }
let typing;

const home = new HomeView({
  join,
  leave,
  peer: () => {
    clearTimeout(typing);
    typing = setTimeout(watchPeople, PRESENCE_AFTER_TYPING_MS);
    showPresence();
  },
  dial,
  again: () => {
    const { other, type } = session.phone.call;
    dial(other, type);
  },
  dismiss: () => session.phone.dismiss(),
});

const callView = new CallView({
  accept: (how) => session?.phone.accept(how),
  decline: () => session?.phone.decline(),
  hangUp: () => session?.phone.hangUp(),
  mute: (muted) => session.phone.setMuted(muted),
  camera: (on) => session.phone.setCamera(on),
  screen: (on) => session.phone.setScreen(on),
  soundBlocked,
});

const historyView = new HistoryView({
  call: (other, type) => {
    home.peer = other;
    dial(other, type);
  },
  more: () => loadHistory((history) => history.more()),
});

home.peer = suggestedPeer();
const known = ownName();
if (known && nameProblem(known) === null) join(known);
else home.showJoin(suggestedName());

// ---- session ------------------------------------------------------------------------------------------

function join(me) {
  rememberName(me);
  const token = ownToken();
  const signaling = new Signaling({ userId: me, deviceId, token });
  const phone = new Phone(signaling);
  const presence = new Presence(signaling);
  session = { me, signaling, phone, presence, history: new CallHistory(me, token) };
  // For debugging in the console: await switchboard.phone.call.getStats()
  globalThis.switchboard = session;

  signaling.addEventListener('status', ({ detail }) => connectionChanged(detail));
  signaling.addEventListener('server:draining', () => home.notice(problemWords('draining')));
  phone.addEventListener('change', showCall);
  phone.addEventListener('problem', ({ detail }) => showProblem(detail));
  phone.addEventListener('over', ({ detail }) => historyAfter(detail));
  presence.addEventListener('change', showPresence);

  home.notice(null);
  home.showHome(me);
  connectionChanged({ status: 'connecting' });
  watchPeople();
}

function leave(problem = null) {
  const { me, phone, signaling } = session;
  phone.hangUp();
  phone.dismiss();
  signaling.close();
  session = null;
  forgetName();
  historyView.render({ rows: [], complete: true }, me);
  home.showJoin(me, problem);
}

function dial(other, type) {
  home.notice(null);
  if (other === session.me) showProblem('SELF_CALL');
  else session.phone.dial(other, type);
}

// ---- views -------------------------------------------------------------------------------------------------

function connectionChanged({ status, message }) {
  if (status === 'refused') {
    leave(refusal(message));
    return;
  }
  home.connection(status);
  callView.connection(status);
  if (status === 'connected') loadHistory((history) => history.refresh());
}

function showCall() {
  const { call } = session.phone;
  const live = call !== null && !call.over;
  callView.render(call);
  document.body.dataset.view = live && ['joining', 'active'].includes(call.phase) ? 'call' : 'home';
  home.ended(call?.over ? call : null);
  document.title = titleFor(live ? call : null);
  ring(live && ['incoming', 'outgoing'].includes(call.phase) ? call.phase : null);
}

function titleFor(call) {
  if (call?.phase === 'incoming') return `${call.otherName} is calling`;
  return call ? `${call.otherName}, switchboard` : 'switchboard';
}

function showProblem(problem) {
  const words = problemWords(problem);
  if (!callView.problem(words)) home.notice(words);
}

function refusal(message) {
  // The message of connect_error begins with the error type, as in "INVALID_PAYLOAD: …".
  const [, type, reason] = /^([A-Z_]+): (.*)$/s.exec(message) ?? [null, 'REFUSED', message];
  return problemWords({ type, message: reason });
}

function soundBlocked() {
  showProblem('sound_blocked');
  const hear = () => {
    document
      .getElementById('remote-audio')
      .play()
      .catch(() => {});
    home.notice(null);
  };
  for (const gesture of ['pointerdown', 'keydown']) document.addEventListener(gesture, hear, { once: true });
}

// ---- presence and history ------------------------------------------------------------------------------------------

function watchPeople() {
  if (!session) return;
  const people = session.history.rows.map(({ caller, receiver }) => (caller === session.me ? receiver : caller));
  session.presence.watch([home.peer, ...people].filter((name) => nameProblem(name) === null));
  showPresence();
}

function showPresence() {
  if (!session) return;
  home.presence(session.presence.of(home.peer));
  historyView.presence((userId) => session.presence.of(userId));
}

async function loadHistory(load) {
  const { history, me } = session;
  try {
    await load(history);
  } catch {
    // Without a connection the status line is sufficient.
    if (session?.history === history && session.signaling.connected) showProblem('history_unavailable');
    return;
  }
  if (session?.history !== history) return;
  historyView.render(history, me);
  watchPeople();
}

/** The server writes the history after its notification, so the row may appear a moment later. */
async function historyAfter(call) {
  const { history } = session;
  for (const delay of HISTORY_TRIES_MS) {
    await new Promise((resolve) => setTimeout(resolve, delay));
    if (session?.history !== history) return;
    await loadHistory(() => history.refresh());
    const row = history.rows.find(({ id }) => id === call.id);
    if (row && !['pending', 'answered'].includes(row.status)) return;
  }
}
