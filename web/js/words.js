// Every sentence that depends on an event, in one place.

const KIND = { audio: 'Audio call', video: 'Video call' };

export function kindOfCall(type) {
  return KIND[type] ?? 'Call';
}

/** 65 → "1:05", 3665 → "1:01:05". */
export function clock(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const [hours, minutes, rest] = parts.map((part) => String(part).padStart(2, '0'));
  return parts[0] > 0 ? `${parts[0]}:${minutes}:${rest}` : `${Number(minutes)}:${rest}`;
}

// ---- the connection and the other person ---------------------------------------------------------------------------

const CONNECTION = {
  connecting: 'Connecting…',
  connected: 'Connected',
  reconnecting: 'Reconnecting…',
  offline: 'Offline, trying again…',
  refused: 'Not connected',
};

export function connectionWords(status) {
  return CONNECTION[status];
}

export function presenceWords(name, status) {
  switch (status) {
    case 'online':
      return `${name} is online`;
    case 'busy':
      return `${name} is in a call`;
    case 'offline':
      return `${name} is offline`;
    default:
      return '';
  }
}

// ---- while there is a call -----------------------------------------------------------------------------------------

export function ringingWords(call) {
  if (call.phase === 'preparing') {
    return call.type === 'video' ? 'Opening your camera and microphone…' : 'Opening your microphone…';
  }
  if (call.ringsOn === null) return 'Calling…';
  return call.ringsOn > 1 ? `Ringing on ${call.ringsOn} devices…` : 'Ringing…';
}

/** The present problem of the running call, or '' if there is none. */
export function troubleWords(call, connection) {
  if (connection !== 'connected') return 'No connection to the server. The call continues while we reconnect…';
  if (call.otherIsAway) return `${call.otherName} lost the connection. Waiting for them to come back…`;
  switch (call.mediaState) {
    case 'disconnected':
      return 'The connection is interrupted. Trying to restore it…';
    case 'failed':
      return 'The connection was lost. Trying another path…';
    case 'connected':
      return '';
    default:
      return 'Connecting sound and picture…';
  }
}

const MISSED_FOR = ['cancelled', 'no_answer', 'busy', 'connection_lost', 'superseded', 'terminated'];

/** The end of a call: { title, detail, missed }. */
export function endWords(call) {
  const { reason, byMe, answered, duration } = call.ended;
  const missed = call.direction === 'incoming' && !answered && !byMe && MISSED_FOR.includes(reason);
  const kind = missed ? `Missed ${kindOfCall(call.type).toLowerCase()}` : kindOfCall(call.type);
  return { title: endTitle(call, reason, byMe), detail: answered ? `${kind}, ${clock(duration)}` : kind, missed };
}

function endTitle({ otherName: other, direction }, reason, byMe) {
  const outgoing = direction === 'outgoing';
  switch (reason) {
    case 'completed':
      return byMe ? 'You ended the call.' : `${other} ended the call.`;
    case 'cancelled':
      return byMe ? 'You cancelled the call.' : outgoing ? 'The call was cancelled.' : `${other} stopped calling.`;
    case 'no_answer':
      return outgoing ? `${other} did not answer.` : `You missed a call from ${other}.`;
    case 'busy':
      return outgoing ? `${other} is on another call.` : `You were busy when ${other} called.`;
    case 'offline':
      return `${other} is offline right now.`;
    case 'declined':
      return byMe ? 'You declined the call.' : `${other} declined the call.`;
    case 'connection_lost':
      return 'The call ended because the connection was lost.';
    case 'superseded':
      return 'The call ended because a new one replaced it.';
    case 'terminated':
      return 'The service ended the call.';
    case 'max_duration':
      return 'The call ended because it reached the longest time allowed.';
    case 'answered_elsewhere':
      return 'You answered on another device.';
    case 'declined_elsewhere':
      return 'You declined on another device.';
    case 'busy_elsewhere':
      return 'You reported on another device that you are busy.';
    case 'resumed_elsewhere':
      return 'The call continues in another window.';
    default:
      return 'The call ended.';
  }
}

// ---- problems -----------------------------------------------------------------------------------------------

/** One sentence for an error of the server, of the browser's devices, or for a problem by name. */
export function problemWords(problem) {
  const name = typeof problem === 'string' ? problem : (problem.type ?? problem.name);
  switch (name) {
    // the server's
    case 'RECIPIENT_OFFLINE':
      return 'That person is offline right now.';
    case 'UNAUTHENTICATED':
      return `The server could not identify you: ${problem.message ?? 'please enter your name again'}.`;
    case 'FORBIDDEN':
      return `The server does not allow that: ${problem.message}`;
    case 'INVALID_PAYLOAD':
      return `The server did not understand the request: ${problem.message}`;
    case 'PAYLOAD_TOO_LARGE':
      return `That was too large for the server: ${problem.message}`;
    case 'NO_ACTIVE_CALL':
      return 'That call is already over.';
    case 'ALREADY_ANSWERED':
      return 'You answered that call on another device.';
    case 'CALL_IN_PROGRESS':
      return 'You are already in a call, perhaps on another device or in another tab.';
    case 'GLARE':
      return 'They are calling you at this very moment.';
    case 'SELF_CALL':
      return 'That is you. Please choose somebody else to call.';
    case 'RATE_LIMITED':
      return `Too many requests. Please try again ${inSeconds(problem.retryAfterMs)}.`;
    case 'TEMPORARILY_UNAVAILABLE':
      return `The server cannot place calls right now. Please try again ${inSeconds(problem.retryAfterMs)}.`;
    case 'NOT_CONNECTED':
      return 'There is no connection to the server right now.';

    // the devices'
    case 'InsecurePage':
      return 'Calls need a secure page: the browser gives camera and microphone only to https or localhost.';
    case 'NotAllowedError':
      return 'The browser was not allowed to use your microphone or camera. Allow it in the site’s settings and try again.';
    case 'NotFoundError':
    case 'OverconstrainedError':
      return 'No microphone or camera was found. Connect one and try again.';
    case 'NotReadableError':
    case 'AbortError':
      return 'Your microphone or camera could not be opened. Perhaps another program is using it.';
    case 'no_camera':
      return 'Your camera could not be opened. They will hear you, but not see you.';
    case 'camera_lost':
      return 'Your camera was disconnected.';
    case 'microphone_lost':
      return 'Your microphone was disconnected. They cannot hear you.';

    // the page's
    case 'sound_blocked':
      return 'The browser blocks the sound. Click or press a key anywhere to hear the other side.';
    case 'history_unavailable':
      return 'The call history could not be loaded.';
    case 'draining':
      return 'The server is about to restart. You will be reconnected automatically.';
    default:
      return `Something went wrong: ${problem.message ?? name}`;
  }
}

function inSeconds(ms) {
  const seconds = Math.ceil((ms ?? 0) / 1000);
  if (seconds === 0) return 'in a moment';
  return seconds === 1 ? 'in a second' : `in ${seconds} seconds`;
}

// ---- history -------------------------------------------------------------------------------------------------------

/** A row of the history as `me` sees it: { other, outgoing, missed, outcome }. */
export function historyWords(row, me) {
  const outgoing = row.caller === me;
  return {
    other: outgoing ? row.receiver : row.caller,
    outgoing,
    missed: !outgoing && row.status === 'missed',
    outcome: outgoing ? outgoingOutcome(row) : incomingOutcome(row),
  };
}

function outgoingOutcome({ status, endReason, duration }) {
  if (status === 'pending') return 'Ringing';
  if (status === 'answered') return 'In progress';
  if (status === 'ended') return clock(duration ?? 0);
  if (status === 'rejected') return 'Declined';
  return (
    { no_answer: 'No answer', busy: 'Busy', offline: 'Was offline', cancelled: 'Cancelled' }[endReason] ?? 'Not reached'
  );
}

function incomingOutcome({ status, endReason, duration }) {
  if (status === 'pending') return 'Ringing';
  if (status === 'answered') return 'In progress';
  if (status === 'ended') return clock(duration ?? 0);
  if (status === 'rejected') return 'You declined';
  return { busy: 'Missed, you were busy', offline: 'Missed, you were offline' }[endReason] ?? 'Missed';
}

/** "Today", "Yesterday", or the date. */
export function dayWords(ms, now = Date.now()) {
  const day = new Date(ms).toDateString();
  if (day === new Date(now).toDateString()) return 'Today';
  const before = new Date(now);
  before.setDate(before.getDate() - 1);
  if (day === before.toDateString()) return 'Yesterday';
  return new Date(ms).toLocaleDateString('en-GB', { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' });
}

export function timeWords(ms) {
  return new Date(ms).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });
}
