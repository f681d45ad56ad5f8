// The faults and their repair. A fault strikes, and returns a function if something must be repaired after clients have
// recovered. A fault without effect is an error. With `loses` a node or a connection ends, and messages in flight with
// it.

import { readdirSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { eventually } from '../support/check.mjs';
import { redisCli } from './redis.mjs';

const run = promisify(execFile);

/** A dead node is evicted within 10 s, and then its devices have a grace of 10 s. */
const DEATH_AND_GRACE_MS = 21_000;
const STILL_MS = 15_000;

const openFiles = ({ pid }) => readdirSync(`/proc/${pid}/fd`).length;
/** The nodes, those with the most clients first: a node that was just replaced has none. */
const busiest = ({ nodes }) => [...nodes].sort((one, other) => openFiles(other) - openFiles(one));
const others = (testbed, node) => testbed.nodes.filter((other) => other !== node);
const times = (text, words) => text.split(words).length - 1;

async function killed(node) {
  await node.kill('SIGKILL');
  return () => node.start();
}

async function standing(pid, ms, meanwhile = () => {}) {
  process.kill(pid, 'SIGSTOP');
  try {
    await Promise.all([pause(ms), meanwhile()]);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
}

/** Freezes a node for longer than it takes the others to evict it. */
async function nodeStanding(testbed, node, meanwhile) {
  const logs = () => others(testbed, node).map((other) => times(other.logs(), 'a node is dead')).reduce((sum, count) => sum + count, 0);
  const before = logs();
  await standing(node.pid, STILL_MS, meanwhile);
  if (logs() === before) throw new Error('nobody took the node for dead');
}

async function cutOff(testbed, how, ms) {
  testbed.redisLink[how]();
  await pause(ms);
  testbed.redisLink.heal();
}

async function postgresAway(testbed, end, ms) {
  await end();
  await pause(ms);
  await testbed.postgres.start();
}

/** Cuts a part of the connections, so that clients must reconnect during a fault. */
function dropSome(people, every) {
  for (const device of people.devices.filter((_, index) => index % every === 0)) device.drop();
}

/** No more files can be opened: the limit is the lowest free descriptor. */
async function withoutFiles(node, meanwhile) {
  const open = new Set((await readdir(`/proc/${node.pid}/fd`)).map(Number));
  let free = 0;
  while (open.has(free)) free += 1;
  const limit = async (soft) => run('prlimit', ['--pid', `${node.pid}`, `--nofile=${soft}:`]);
  const { stdout } = await run('prlimit', ['--pid', `${node.pid}`, '--nofile', '--output=SOFT', '--noheadings']);
  await limit(free);
  try {
    await meanwhile();
  } finally {
    await limit(stdout.trim());
  }
}

async function channelOf(testbed) {
  const port = testbed.redis.ports[0];
  const [node] = (await redisCli(port, '-c', 'ZRANGE', 'sb:{default}:nodes', '0', '-1')).split('\n');
  return `sb:n:default:${node}`;
}

const STATE = 'sb:{default}:nodes';

const SINGLE = [
  { name: 'nothing, for comparison', strike: () => pause(5_000) },
  {
    name: 'a node killed (`kill -9`)',
    loses: true,
    watchMs: DEATH_AND_GRACE_MS,
    strike: ({ testbed }) => killed(busiest(testbed)[0]),
  },
  {
    name: 'a node stands still for 15 s (SIGSTOP)',
    watchMs: DEATH_AND_GRACE_MS,
    strike: ({ testbed }) => nodeStanding(testbed, busiest(testbed)[0]),
  },
  { name: 'a node told to stop (SIGTERM), and started again', strike: ({ testbed }) => busiest(testbed)[0].restart() },
  { name: 'Redis stands still for 5 s', strike: ({ testbed }) => standing(testbed.redis.pid, 5_000) },
  { name: 'Redis restarted, empty', strike: ({ testbed }) => testbed.redis.restart() },
  {
    name: 'one node cut off from Redis for 5 s, by resets and by silence in turn',
    strike: ({ testbed, round }) => cutOff(testbed, round % 2 ? 'freeze' : 'cut', 5_000),
  },
  { name: 'Postgres stopped for 8 s', strike: ({ testbed }) => postgresAway(testbed, () => testbed.postgres.halt(), 8_000) },
  { name: 'Postgres killed with all its processes, back after 3 s', strike: ({ testbed }) => postgresAway(testbed, () => testbed.postgres.die(), 3_000) },
  {
    name: "Postgres' disk full for 8 s",
    needs: ({ postgres }) => (postgres.hasDisk ? undefined : 'the right to mount a small disk (root)'),
    async strike({ testbed }) {
      const free = await testbed.postgres.fillDisk();
      try {
        await pause(8_000);
      } finally {
        await free();
      }
      // It may have shut down for good.
      if (!testbed.postgres.isRunning) await testbed.postgres.start();
      if (!/history cannot be written/.test(testbed.cluster.logs())) throw new Error('no node saw that the disk was full');
    },
  },
  {
    name: 'Postgres slow: 500 ms each way, for 10 s',
    async strike({ testbed }) {
      testbed.postgresLink.slow(500);
      await pause(10_000);
      testbed.postgresLink.slow(0);
    },
  },
  { name: 'HAProxy reloaded', strike: ({ testbed }) => testbed.balancer.reload() },
  {
    name: "a node's clock moved by an hour, on and back",
    needs: ({ clock }) => (clock ? undefined : 'libfaketime'),
    async strike({ testbed }) {
      for (const seconds of [3_600, -3_600, 0]) {
        await testbed.clock.move(seconds);
        await pause(4_000);
        const { headers } = await fetch(testbed.nodes.find(({ hasMovableClock }) => hasMovableClock).url);
        const aheadMs = Date.parse(headers.get('date')) - Date.now();
        // The library updates this header only when time has advanced, so a clock that was set back does not show.
        if (seconds > 0 && Math.abs(aheadMs - seconds * 1_000) > 60_000) throw new Error(`the clock is ${aheadMs} ms ahead`);
      }
    },
  },
  {
    name: 'a node without file descriptors for 8 s, a third of all connections cut',
    loses: true,
    async strike({ testbed, people }) {
      const node = busiest(testbed)[0];
      const before = times(node.logs(), 'could not be accepted');
      await withoutFiles(node, async () => {
        dropSome(people, 3);
        await pause(8_000);
      });
      if (times(node.logs(), 'could not be accepted') === before) throw new Error('the node had descriptors left');
    },
  },
  {
    name: 'HAProxy killed: 2,000 more clients, all reconnecting at once',
    loses: true,
    crowd: 2_000,
    async strike({ testbed, crowd, figures }) {
      const [at, back] = [Date.now(), crowd.back()];
      await testbed.balancer.restart();
      await back;
      figures.crowdBackMs = Math.max(figures.crowdBackMs ?? 0, Date.now() - at);
    },
  },
  {
    name: 'mixed: a node killed while Redis stands still for 5 s',
    loses: true,
    watchMs: DEATH_AND_GRACE_MS,
    async strike({ testbed }) {
      const node = busiest(testbed)[0];
      await standing(testbed.redis.pid, 5_000, async () => {
        await pause(1_000);
        await node.kill('SIGKILL');
      });
      return () => node.start();
    },
  },
  {
    name: 'mixed: Redis restarted empty, Postgres stopped, HAProxy killed',
    loses: true,
    async strike({ testbed }) {
      await testbed.postgres.halt();
      await Promise.all([testbed.redis.restart(), testbed.balancer.restart()]);
      return () => testbed.postgres.start();
    },
  },
  {
    name: 'mixed: a node stands still for 15 s, and another is killed meanwhile',
    loses: true,
    watchMs: STILL_MS + DEATH_AND_GRACE_MS,
    async strike({ testbed }) {
      const [still, dies] = busiest(testbed);
      await nodeStanding(testbed, still, async () => {
        await pause(5_000);
        await dies.kill('SIGKILL');
      });
      return () => dies.start();
    },
  },
  {
    name: 'mixed: one node cut off from Redis for 5 s, another told to stop, Postgres killed',
    async strike({ testbed, round }) {
      const stops = testbed.nodes[round % 2];
      await Promise.all([
        cutOff(testbed, round % 2 ? 'freeze' : 'cut', 5_000),
        stops.restart(),
        postgresAway(testbed, () => testbed.postgres.die(), 3_000),
      ]);
    },
  },
];

const SENTINEL = [
  {
    name: 'Redis fails over (three Sentinels)',
    async strike({ testbed }) {
      const dead = await testbed.redis.failOver();
      return () => testbed.redis.repair(dead);
    },
  },
  {
    name: 'mixed: Redis fails over while a node is killed',
    loses: true,
    watchMs: DEATH_AND_GRACE_MS,
    async strike({ testbed }) {
      const node = busiest(testbed)[0];
      const [dead] = await Promise.all([testbed.redis.failOver(), node.kill('SIGKILL')]);
      return () => Promise.all([testbed.redis.repair(dead), node.start()]);
    },
  },
];

const CLUSTER = [
  {
    name: 'the slot of all state moved in a Redis Cluster',
    async strike({ testbed }) {
      const moved = await testbed.redis.moveSlotOf(STATE);
      if (moved < 10) throw new Error(`only ${moved} keys were moved`);
    },
  },
  {
    name: "the slot of a node's channel moved in a Redis Cluster",
    async strike({ testbed }) {
      await testbed.redis.moveSlotOf(await channelOf(testbed));
    },
  },
  {
    name: 'mixed: the slot of all state moved, a node killed, Postgres stopped for 3 s',
    loses: true,
    watchMs: DEATH_AND_GRACE_MS,
    async strike({ testbed }) {
      const node = busiest(testbed)[0];
      await Promise.all([
        testbed.redis.moveSlotOf(STATE),
        node.kill('SIGKILL'),
        postgresAway(testbed, () => testbed.postgres.halt(), 3_000),
      ]);
      return () => node.start();
    },
  },
];

/** By the kind of Redis. */
export const FAULTS = { single: SINGLE, sentinel: SENTINEL, cluster: CLUSTER };
