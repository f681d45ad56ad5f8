// The cost of a call, and of a node's start and stop, for clusters of 2 to 32 nodes on one machine at a low rate. What an
// idle cluster costs meanwhile is measured over a period of the same length and subtracted. Takes five minutes:
//
//   SWITCHBOARD_BIN=target/release/switchboard node benches/nodes.mjs

import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { startCluster } from '../tests/support/cluster.mjs';
import { BINARY } from '../tests/support/server.mjs';

const SIZES = (process.env.NODES ?? '2,8,16,32').split(',').map(Number);
const RATE = 10;
const SECONDS = Number(process.env.SECONDS ?? 20);
/** A row is written, and an ended call is marked as stored, this long after the last call. */
const SETTLE_MS = 5_000;
/** A node's start and stop are over. */
const JOIN_MS = 5_000;
/** /proc counts CPU time in hundredths of a second. */
const TICK_MS = 10;

const run = promisify(execFile);

/** CPU time of a process in ms. Its name, in parentheses, may have spaces. */
async function cpuMs(pid) {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

async function reading({ redis, nodes }) {
  const { commands, bytes, cpuMs: redisMs } = await redis.counted();
  // Commands inside of scripts are not sent by nodes.
  const sent = ['evalsha', 'spublish', 'pubsub|shardnumsub'].map((name) => commands[name] ?? 0);
  const nodesMs = await Promise.all(nodes.filter((node) => node.isRunning).map(({ pid }) => cpuMs(pid)));
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  return { at: Date.now(), commands: sum(sent), bytes, redisMs, nodesMs: sum(nodesMs) };
}

const KINDS = ['commands', 'bytes', 'redisMs', 'nodesMs'];

/** The cost of `work`, and that of an idle second after it. */
async function beyondIdle(cluster, work) {
  const before = await reading(cluster);
  await work();
  const after = await reading(cluster);
  await pause(after.at - before.at);
  const idle = await reading(cluster);
  const share = (after.at - before.at) / (idle.at - after.at);
  const seconds = (idle.at - after.at) / 1_000;
  return {
    work: Object.fromEntries(KINDS.map((kind) => [kind, after[kind] - before[kind] - (idle[kind] - after[kind]) * share])),
    idle: Object.fromEntries(KINDS.map((kind) => [kind, (idle[kind] - after[kind]) / seconds])),
  };
}

async function calls(cluster) {
  const [caller, callee] = cluster.nodes.map(({ url }) => url.replace('http:', 'ws:'));
  const bench = (seconds) =>
    run(BINARY, ['bench', 'calls', '--url', caller, '--callee-url', callee, '--rate', `${RATE}`, '--pairs', '32', '--duration', `${seconds}s`, '--warm-up', '0s', '--json'], { env: {} });
  // The links are there, and the users have a latest call.
  await bench(3);
  await pause(SETTLE_MS);
  let made = 0;
  const { work, idle } = await beyondIdle(cluster, async () => {
    const { stdout } = await bench(SECONDS);
    made = JSON.parse(stdout).calls;
    await pause(SETTLE_MS);
  });
  return { made, call: Object.fromEntries(KINDS.map((kind) => [kind, work[kind] / made])), idle };
}

/** Redis' cost of a node that starts, and of one that stops, without clients. */
async function comingAndGoing(cluster, options) {
  let node;
  const { work: start } = await beyondIdle(cluster, async () => {
    node = await cluster.addNode(options);
    await pause(JOIN_MS);
  });
  const { work: stop } = await beyondIdle(cluster, async () => {
    await node.leave();
    await pause(JOIN_MS);
  });
  cluster.nodes.pop();
  return { start, stop };
}

// Each process that a test starts is ended with this one.
process.setMaxListeners(0);

const rows = [];
for (const size of SIZES) {
  const options = { env: { SWITCHBOARD_LIMITS: 'off' } };
  const cluster = await startCluster(size, options);
  try {
    const { made, call, idle } = await calls(cluster);
    const { start, stop } = await comingAndGoing(cluster, options);
    rows.push([
      size, made, call.commands.toFixed(1), Math.round(call.bytes), call.redisMs.toFixed(2), call.nodesMs.toFixed(2),
      (idle.commands / size).toFixed(1), Math.round(idle.bytes / size), (idle.nodesMs / size).toFixed(2),
      Math.round(start.commands), Math.round(start.bytes), Math.round(stop.commands), Math.round(stop.bytes),
    ]);
    console.error(`${size} nodes: ${rows.at(-1)}`);
  } finally {
    await cluster.stop();
  }
}
const head = [
  'nodes', 'calls', 'commands a call', 'bytes', 'CPU of Redis, ms', 'CPU of all nodes, ms', 'commands of an idle node a second',
  'bytes', 'its CPU, ms', 'commands of a start', 'bytes', 'of a stop', 'bytes',
];
console.log([head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n'));
