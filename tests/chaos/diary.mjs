// The diary: a log of all clients and their calls, for debugging failures.

/** The most recorded messages of a call; all other events are few. */
const MOST_MESSAGES = 300;
/** Events of a client within this time before and after a call may belong to it. */
const AROUND_MS = 15_000;
/** The most lines of a node's log in the report of a call. */
const MOST_LOG_LINES = 40;

/** Notes in order. */
export class Diary {
  #notes = [];
  #messages = [];

  note(text) {
    this.#notes.push({ at: Date.now(), text });
  }

  /** Records a message; the oldest are dropped. */
  message(text) {
    this.#messages.push({ at: Date.now(), text });
    if (this.#messages.length > MOST_MESSAGES) this.#messages.shift();
  }

  between(from, to) {
    return [...this.#notes, ...this.#messages].filter(({ at }) => from <= at && at <= to);
  }
}

/** The report of a call: its clients' actions and events, and the nodes' log lines. */
export function storyOf(call, nodes) {
  const [from, to] = [call.beganAt - AROUND_MS, (call.endedAt ?? Date.now()) + AROUND_MS];
  const told = toldBy([call.diary, call.caller.diary, call.callee.diary], from, to);
  const logged = nodes.flatMap((node, index) => {
    const lines = node.logs().split('\n').filter((line) => line.includes(call.id));
    return lines.slice(-MOST_LOG_LINES).map((line) => `    node ${index + 1}: ${line}`);
  });
  return [...told, ...logged].join('\n');
}

/** The lines of these diaries in a period. */
export function toldBy(diaries, from, to) {
  const notes = diaries.flatMap((diary) => diary.between(from, to)).sort((one, other) => one.at - other.at);
  return notes.map(({ at, text }) => `    ${clock(at)} ${text}`);
}

const clock = (at) => new Date(at).toISOString().slice(11, 23);
