// Plays one fault on a testbed with users, and collects the figures.

import { setTimeout as pause } from 'node:timers/promises';
import { startCrowd } from './crowd.mjs';

const NOTED_BEFORE_MS = 1_000;

/** Faults that strike a testbed one after the other; each leaves its figures. */
export class Rounds {
  constructor({ testbed, people, ledger, slowMs, say }) {
    Object.assign(this, { testbed, people, ledger, slowMs, say });
    this.figures = new Map();
    this.begun = [{ fault: 'none', at: 0 }];
  }

  /** Plays a fault `rounds` times. */
  async play(fault, rounds) {
    const crowd = fault.crowd && (await startCrowd(this.testbed.url, fault.crowd));
    try {
      for (let round = 0; round < rounds; round += 1) await this.#playOnce(fault, round, crowd);
    } finally {
      await crowd?.stop();
    }
    return this.#figuresOf(fault);
  }

  async #playOnce(fault, round, crowd) {
    const { testbed, people, ledger } = this;
    const figures = this.#figuresOf(fault);
    figures.before ??= await testbed.memoryBytes();
    this.begun.push({ fault: fault.name, at: Date.now() });
    ledger.fault = fault.name;
    // Messages acknowledged just before may be lost with this fault.
    await pause(NOTED_BEFORE_MS);
    const at = Date.now();
    people.struck(at);
    people.strike();
    try {
      const repair = await fault.strike({ testbed, people, round, crowd, figures });
      await people.recovered();
      figures.workAgainMs.push(...people.workAgainMs());
      if (people.workAgainMs().at(-1) > this.slowMs) this.say(people.storyOfSlowest());
      await repair?.();
      await people.presenceIsTrue();
    } catch (error) {
      ledger.note('failed', `the fault went wrong: ${error.message}`);
    }
    await pause(at + (fault.watchMs ?? 0) - Date.now());
    people.struck(Date.now());
    await people.recovered();
    for (const line of await testbed.violations()) ledger.note('violated', line);
    figures.after = await testbed.memoryBytes();
    figures.rounds += 1;
  }

  #figuresOf({ name }) {
    if (!this.figures.has(name)) this.figures.set(name, { rounds: 0, workAgainMs: [] });
    return this.figures.get(name);
  }

  /** The fault that was active at a time. */
  faultAt(time) {
    return this.begun.findLast(({ at }) => at <= time).fault;
  }
}
