// Every fault several times, while hundreds of clients are in calls and set up others. Writes the table into
// docs/operations/reliability.md. `make chaos` builds what it needs, and fails if a zero is not zero.
//
// ROUNDS says how often, TALKING and DIALLING how many pairs are in calls and set up calls; ONLY is a part of the names
// of the faults to play: then nothing is written. With SLOW, the slowest pair's story is told wherever one took longer
// than so many seconds until it could call again.

import { FAULTS } from './faults.mjs';
import { playGroup } from './group.mjs';
import { HEAD, notRun, row, writeBetween } from './table.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 3);
const TALKING = Number(process.env.TALKING ?? 100);
const DIALLING = Number(process.env.DIALLING ?? 40);
const ONLY = process.env.ONLY ?? '';
const SLOW_MS = Number(process.env.SLOW ?? Infinity) * 1_000;
/** The run ends after this time in any case. */
const LONGEST_MS = ROUNDS * 20 * 60_000;
const SHOWN = 5;

const began = Date.now();
const say = (text) => console.log(`${String(Math.round((Date.now() - began) / 1_000)).padStart(5)} s  ${text}`);
const chosen = (name) => name.includes(ONLY);
setTimeout(() => {
  say('it takes too long: given up');
  process.exit(1);
}, LONGEST_MS).unref();

const rows = [];
const wrong = [];
let [calls, messages, excused] = [0, 0, 0];
for (const kind of Object.keys(FAULTS).filter((kind) => FAULTS[kind].some(({ name }) => chosen(name)))) {
  const group = await playGroup(kind, { chosen, rounds: ROUNDS, talking: TALKING, dialling: DIALLING, slowMs: SLOW_MS, say });
  calls += group.ledger.calls.size;
  messages += group.ledger.messages;
  excused += group.ledger.excused.length;
  wrong.push(...group.wrong);
  for (const { fault, missing, figures, counts, wrong: these } of group.results) {
    rows.push(missing ? notRun(fault, missing) : row(fault, figures, counts));
    wrong.push(...these);
  }
}

console.log([...HEAD, ...rows].join('\n'));
say(`${calls} calls, ${messages} messages heard; ${excused} calls ended because a side was away for longer than its grace`);
if (!ONLY) {
  const summary = `${calls.toLocaleString('en')} calls, ${messages.toLocaleString('en')} numbered messages heard, ${excused} calls that ended because a client was away for longer than its grace.`;
  await writeBetween('chaos', [...HEAD, ...rows, '', summary]);
}
for (const text of wrong.slice(0, SHOWN * 10)) console.error(text);
if (wrong.length > 0) {
  console.error(`${wrong.length} things went wrong that must not`);
  process.exitCode = 1;
}
