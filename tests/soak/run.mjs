// Steady churn for hours: clients come and go, and calls are made and ended at the same rate all the time. Each minute
// memory, open files, Redis' keys and Postgres' connections are read; at the end the last third is held against the
// first. Writes a table into docs/operations/reliability.md, and fails if something grew. `make soak HOURS=…` builds what it needs.
//
// HOURS may be a part of one. Before them is time to warm up: what is allocated once is allocated then, and there are
// as many records of ended calls as there will be.

import { readdir } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { Ledger } from '../chaos/ledger.mjs';
import { People } from '../chaos/people.mjs';
import { redisCli } from '../chaos/redis.mjs';
import { writeBetween } from '../chaos/table.mjs';
import { startTestbed } from '../chaos/testbed.mjs';
import { residentBytes } from '../support/memory.mjs';

const HOURS = Number(process.env.HOURS ?? 1);
const RUN_MS = HOURS * 3_600_000;
/** Redis keeps an ended call for a minute. */
const WARM_UP_MS = 90_000;
/** At least twelve samples, however short the run is. */
const SAMPLE_EVERY_MS = Math.min(60_000, RUN_MS / 12);
const [TALKING, DIALLING] = [40, 40];
/** The interval at which a client loses its connection and reconnects. */
const DROP_EVERY_MS = 100;
/** The ledger forgets calls after this time, because its own memory is not measured. */
const FORGET_AFTER_MS = 120_000;

const MEASURES = {
  'memory of the nodes, MiB': { grows: 1.1, read: async (testbed) => (await testbed.memoryBytes()) / 1024 / 1024 },
  'memory of the largest node, MiB': { grows: 1.1, read: async ({ nodes }) => Math.max(...(await Promise.all(nodes.map(residentBytes)))) / 1024 / 1024 },
  'open files of the nodes': { grows: 1.1, read: filesOf },
  "Redis' keys": { grows: 1.2, read: async ({ redis }) => Number(await redisCli(redis.port, 'DBSIZE')) },
  "Redis' memory, MiB": { grows: 1.1, read: redisMemory },
  "Postgres' connections": { grows: 1.1, read: async ({ postgres }) => Number(await postgres.ask('SELECT count(*) FROM pg_stat_activity WHERE client_port > 0')) },
};

async function filesOf({ nodes }) {
  const counts = await Promise.all(nodes.map(async ({ pid }) => (await readdir(`/proc/${pid}/fd`)).length));
  return counts.reduce((sum, count) => sum + count, 0);
}

async function redisMemory({ redis }) {
  return Number(/used_memory:(\d+)/.exec(await redisCli(redis.port, 'INFO', 'memory'))[1]) / 1024 / 1024;
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
const shown = (number) => number.toFixed(number < 100 ? 1 : 0);

/** Random clients lose their connection, one after the other. */
async function churn(people, goesOn) {
  let lost = 0;
  while (goesOn()) {
    people.devices[Math.floor(Math.random() * people.devices.length)].drop();
    lost += 1;
    await pause(DROP_EVERY_MS);
  }
  return lost;
}

function forgetOld(ledger) {
  let calls = 0;
  for (const [id, call] of ledger.calls) {
    if (!(call.endedAt < Date.now() - FORGET_AFTER_MS)) continue;
    ledger.calls.delete(id);
    calls += 1;
  }
  return calls;
}

const testbed = await startTestbed('single');
const ledger = new Ledger();
const people = new People(testbed.url, ledger, { talking: TALKING, dialling: DIALLING });
const began = Date.now();
let [goesOn, calls] = [true, 0];
const samples = [];
try {
  await people.start();
  const churning = churn(people, () => goesOn);
  await pause(WARM_UP_MS);
  while (Date.now() - began < WARM_UP_MS + RUN_MS) {
    const read = Object.entries(MEASURES).map(async ([name, { read }]) => [name, await read(testbed)]);
    samples.push(Object.fromEntries(await Promise.all(read)));
    calls += forgetOld(ledger);
    console.log(`${Math.round((Date.now() - began) / 1_000)} s  ${Object.values(samples.at(-1)).map(shown).join('  ')}`);
    await pause(SAMPLE_EVERY_MS);
  }
  goesOn = false;
  const lost = await churning;
  const third = Math.floor(samples.length / 3);
  const grown = [];
  const rows = Object.entries(MEASURES).map(([name, { grows }]) => {
    const values = samples.map((sample) => sample[name]);
    const [first, last] = [mean(values.slice(0, third)), mean(values.slice(-third))];
    if (last > first * grows + 1) grown.push(`${name}: from ${shown(first)} to ${shown(last)}`);
    return `| ${name} | ${shown(first)} | ${shown(last)} | ${shown(Math.max(...values))} |`;
  });
  const minutes = Math.round((Date.now() - began) / 60_000);
  const done = `${minutes} minutes: ${(calls + ledger.calls.size).toLocaleString('en')} calls, ${ledger.messages.toLocaleString('en')} messages heard, ${lost.toLocaleString('en')} connections lost and made again, ${samples.length} samples.`;
  const table = ['| | first third | last third | most |', '|---|---|---|---|', ...rows, '', done];
  console.log(table.join('\n'));
  await writeBetween('soak', table);
  const wrong = ledger.incidents.filter(({ kind }) => kind !== 'lost');
  for (const { kind, text } of wrong.slice(0, 20)) console.error(`${kind}: ${text}`);
  for (const text of grown) console.error(`it grows: ${text}`);
  if (grown.length > 0 || wrong.length > 0) process.exitCode = 1;
} finally {
  goesOn = false;
  people.close();
  await testbed.stop();
}
process.exit();
