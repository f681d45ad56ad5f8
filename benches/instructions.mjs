// Counts instructions and system calls per call on one node under valgrind, for switchboard and the bare relay in turn: the cost
// of a change where CPU time is too noisy. `make bench-instructions` builds the binaries.
//
// BASE names another build of switchboard to compare with, BIN one to measure instead; KINDS=switchboard leaves out the
// relay. ROUNDS, SECONDS and PAIRS change the size.

import { readFile } from 'node:fs/promises';
import { median } from './results.mjs';
import { address, bench, clearUp, floor, run, SERVERS, settings, start, stop, switchboard, unused } from './servers.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 3);
const SECONDS = Number(process.env.SECONDS ?? 10);
const PAIRS = Number(process.env.PAIRS ?? 8);

const ALL = {
  ...(process.env.BASE && { 'the build before': () => [process.env.BASE, ...settings()] }),
  switchboard: () => [switchboard, ...settings()],
  floor: () => [floor],
};
const wanted = process.env.KINDS?.split(',');
const KINDS = Object.entries(ALL).filter(([kind]) => kind === 'the build before' || (wanted?.includes(kind) ?? true));

/** Instructions and system calls of a node since the last call of this function. */
async function used(server, out, part) {
  await run('callgrind_control', ['--dump', `${server.pid}`]);
  const [, ...counts] = /^(?:summary|totals): (\d+) (\d+)/m.exec(await readFile(`${out}.${part}`, 'utf8'));
  return counts.map(Number);
}

/** The difference between a long and a short run, which excludes the cost of joining and leaving. */
async function measure(command) {
  const out = unused('callgrind');
  const valgrind = ['--tool=callgrind', '--collect-systime=yes', '--instr-atstart=no', `--callgrind-out-file=${out}`];
  const server = start(SERVERS, 'valgrind', [...valgrind, ...command()]);
  try {
    const url = await address(server);
    await run('callgrind_control', ['--instr=on', `${server.pid}`]);
    const calls = async (seconds) => {
      const timing = ['--warm-up', '0s', '--duration', `${seconds}s`];
      return (await bench('calls', [server], '--url', url, '--pairs', `${PAIRS}`, ...timing)).calls;
    };
    await calls(1);
    await used(server, out, 1);
    const few = [await calls(SECONDS / 5), ...(await used(server, out, 2))];
    const many = [await calls(SECONDS), ...(await used(server, out, 3))];
    const [count, instructions, systemCalls] = many.map((value, index) => value - few[index]);
    return { instructions: instructions / 1_000 / count, systemCalls: systemCalls / count };
  } finally {
    await stop(server);
  }
}

const show = (values) => `${median(values).toFixed(0)} (${Math.min(...values).toFixed(0)}–${Math.max(...values).toFixed(0)})`;

try {
  const results = Object.fromEntries(KINDS.map(([kind]) => [kind, []]));
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [kind, command] of KINDS) {
      const result = await measure(command);
      results[kind].push(result);
      console.error(kind, JSON.stringify(result));
    }
  }
  console.log('| one node, median (range) | thousand instructions a call | system calls a call |\n|---|---|---|');
  for (const [kind, measured] of Object.entries(results)) {
    const figures = ['instructions', 'systemCalls'].map((figure) => show(measured.map((result) => result[figure])));
    console.log(`| ${[kind, ...figures].join(' | ')} |`);
  }
} finally {
  await clearUp();
}
