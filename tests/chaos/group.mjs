// Plays all faults for one kind of Redis on a testbed with users. In the end the ledger is compared with the history.

import { FAULTS } from './faults.mjs';
import { checkHistory } from './history.mjs';
import { Ledger } from './ledger.mjs';
import { People } from './people.mjs';
import { Rounds } from './round.mjs';
import { startTestbed } from './testbed.mjs';

/** Violations that no fault excuses. Messages may be lost with the connection or the node of their receiver. */
const NEVER = ['ended', 'history', 'disorder', 'stranger', 'presence', 'failed', 'violated'];

/** The most violations under a fault that are reported with their whole story. */
const MOST_STORIES = 5;

/**
 * Plays the faults for one kind of Redis whose names satisfy `chosen`, `rounds` times each, and reports the slowest
 * pair if it took longer than `slowMs`. Returns a result for each fault: its figures, the counts of violations, and the
 * unexcused ones.
 */
export async function playGroup(kind, { chosen = () => true, rounds, talking, dialling, everyMs, slowMs = Infinity, say = () => {} }) {
  const ledger = new Ledger();
  const results = [];
  const testbed = await startTestbed(kind);
  const people = new People(testbed.url, ledger, { talking, dialling, everyMs });
  try {
    await people.start();
    const played = new Rounds({ testbed, people, ledger, slowMs, say });
    for (const fault of FAULTS[kind].filter(({ name }) => chosen(name))) {
      const missing = fault.needs?.(testbed);
      if (!missing) await played.play(fault, rounds);
      say(missing ? `${fault.name}: not run, it needs ${missing}` : fault.name);
      results.push({ fault, missing, figures: played.figures.get(fault.name) });
    }
    await people.stop();
    say(`${ledger.calls.size} calls and ${ledger.messages} messages are held against the history`);
    await checkHistory(testbed.postgres, ledger, (time) => played.faultAt(time));
  } finally {
    people.close();
    await testbed.stop();
  }
  for (const result of results) Object.assign(result, judged(result.fault, ledger, testbed));
  return { results, ledger, ...judged({ name: 'none' }, ledger, testbed) };
}

function judged(fault, ledger, { nodes }) {
  const counts = ledger.counts(fault.name);
  const never = [...NEVER, 'lost', ...(fault.loses ? [] : ['cut'])];
  const wrong = ledger.incidents
    .filter((incident) => incident.fault === fault.name && never.includes(incident.kind))
    .map((incident, index) => ledger.tell(incident, index < MOST_STORIES ? nodes : undefined));
  return { counts, wrong };
}
