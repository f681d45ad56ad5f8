// A log of all clients and their calls, moment by moment, to debug failures.

/** Most messages of a call that are written down; of all else there is little. */
const MOST_MESSAGES = 300;
/** Events of a client within this time before and after a call may belong to it. */
const AROUND_MS = 15_000;
/** Most lines of a node's log that are told with a call. */
const MOST_LOG_LINES = 40;

/** Notes in the order in which they were made. */
export class Diary {
  #notes = [];
  #messages = [];

  note(text) {
    this.#notes.push({ at: Date.now(), text });
  }

  /** One of many: the oldest go. */
  message(text) {
    this.#messages.push({ at: Date.now(), text });
    if (this.#messages.length > MOST_MESSAGES) this.#messages.shift();
  }

  between(from, to) {
    return [...this.#notes, ...this.#messages].filter(({ at }) => from <= at && at <= to);
  }
}

/** All that is known of a call: what its clients did and heard, and what the nodes' logs say of it. */
export function storyOf(call, nodes) {
  const [from, to] = [call.beganAt - AROUND_MS, (call.endedAt ?? Date.now()) + AROUND_MS];
  const told = toldBy([call.diary, call.caller.diary, call.callee.diary], from, to);
  const logged = nodes.flatMap((node, index) => {
    const lines = node.logs().split('\n').filter((line) => line.includes(call.id));
    return lines.slice(-MOST_LOG_LINES).map((line) => `    node ${index + 1}: ${line}`);
  });
  return [...told, ...logged].join('\n');
}

/** The lines of these diaries. */
export function toldBy(diaries, from, to) {
  const notes = diaries.flatMap((diary) => diary.between(from, to)).sort((one, other) => one.at - other.at);
  return notes.map(({ at, text }) => `    ${clock(at)} ${text}`);
}

const clock = (at) => new Date(at).toISOString().slice(11, 23);
