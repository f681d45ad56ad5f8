// Measures switchboard, a hand-written Node server and a bare socketioxide relay in turn, over several rounds. Keeps the results in
// target/bench.json and formats them with page.mjs. `make bench` builds the binaries.
//
// ROUNDS, SECONDS and SOCKETS change the size, ONLY=two,idle selects measurements.

import { readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { startPostgres } from '../tests/support/postgres.mjs';
import { MEASUREMENTS, RATE } from './measurements.mjs';
import { results } from './results.mjs';
import {
  address, bench, clearUp, cpuSeconds, floor, OTHERS, reference, run, says, SERVERS, settings, start, startRedis, stop, switchboard,
} from './servers.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SECONDS = Number(process.env.SECONDS ?? 4);
const SOCKETS = Number(process.env.SOCKETS ?? 10_000);
const only = process.env.ONLY?.split(',');
const wanted = Object.entries(MEASUREMENTS).filter(([name]) => only?.includes(name) ?? true);

/** The durability of production, on the core of the generator. The measured server creates the schema. */
const POSTGRES = { schema: false, settings: { fsync: 'on' }, core: OTHERS };

// A closed port: rows wait and are never written.
const NOWHERE = 'postgres://postgres@127.0.0.1:1/none';

const inNode = (redis, env = {}) => start(SERVERS, 'node', [reference], { ...(redis && { REDIS_URL: redis.url }), ...env });

/** Commands of each server, alone or on a Redis. */
const KINDS = {
  switchboard: ({ redis }) => start(SERVERS, switchboard, settings({ redis })),
  'switchboard, Postgres': ({ postgres }) => start(SERVERS, switchboard, [...settings({ database: postgres.url }), '--migrate']),
  'switchboard, no history': () => start(SERVERS, switchboard, settings({ database: NOWHERE })),
  floor: ({ redis }) => start(SERVERS, floor, [], redis ? { REDIS_URL: redis.url } : {}),
  node: ({ redis }) => inNode(redis),
  'node, sharded': ({ redis }) => inNode(redis, { ADAPTER: 'sharded' }),
};

/** Runs a measurement on `nodes` nodes of a kind, with their dependencies. */
async function withNodes(kind, { nodes, onRedis = nodes > 1 }, work) {
  const redis = onRedis ? await startRedis() : undefined;
  const postgres = kind.includes('Postgres') ? await startPostgres(POSTGRES) : undefined;
  const servers = Array.from({ length: nodes }, () => KINDS[kind]({ redis, postgres }));
  try {
    const urls = await Promise.all(servers.map(address));
    return await work({ servers, urls, redis, postgres });
  } finally {
    await Promise.all(servers.map((server) => stop(server)));
    await postgres?.stop();
    if (redis) await stop(redis.child);
  }
}

// Each node has callers, and their callees are on the next one.
const places = ({ urls }) => ['--url', urls.join(','), '--callee-url', [...urls.slice(1), urls[0]].join(',')];
const timing = ['--duration', `${SECONDS}s`, '--warm-up', '2s'];
const counters = ({ redis }) => (redis ? ['--redis', redis.address] : []);

/** Rows written so far, and CPU time of all processes of this Postgres. */
const usedBy = async (postgres) => ({ rows: Number(await postgres.ask('SELECT count(*) FROM calls')), cpu_s: cpuSeconds(postgres.pid) });

/** Arguments of `switchboard bench`. */
const MODES = {
  calls: async (cluster, { rate, pairs = 64 }) => {
    const pace = rate ? ['--rate', `${rate}`] : [];
    const [before, began] = [cluster.postgres && (await usedBy(cluster.postgres)), performance.now()];
    const figures = await bench('calls', cluster.servers, ...places(cluster), ...counters(cluster), '--pairs', `${pairs}`, ...timing, ...pace);
    if (!cluster.postgres) return figures;
    const after = await usedBy(cluster.postgres);
    const [rows, seconds] = [after.rows - before.rows, (performance.now() - began) / 1_000];
    const postgres_cpu_per_row_us = ((after.cpu_s - before.cpu_s) * 1e6) / rows;
    return { ...figures, postgres_cpu_per_row_us, postgres_rows_per_second: rows / seconds };
  },
  /** Few calls, so the periodic commands of nodes count: they are measured afterwards and subtracted. */
  low: async (cluster, { rate, seconds }) => {
    const pace = ['--rate', `${rate}`, '--pairs', '16', '--warm-up', '1s', '--duration', `${seconds}s`];
    const figures = await bench('calls', cluster.servers, ...places(cluster), ...counters(cluster), ...pace);
    const quiet = await bench('idle', cluster.servers, '--url', cluster.urls[0], ...counters(cluster), '--sockets', '1', '--hold', `${seconds}s`);
    const net = (what) => figures[`redis_${what}_per_call`] - quiet[`idle_redis_${what}_per_second`] / figures.calls_per_second;
    const idle_node_us_per_second = quiet.idle_cpu_per_socket_us / cluster.servers.length;
    return { ...figures, idle_node_us_per_second, ...Object.fromEntries(['commands', 'publishes', 'scripts'].map((what) => [`net_redis_${what}_per_call`, net(what)])) };
  },
  idle: (cluster, { hold_s, share = 1 }) => {
    const size = ['--sockets', `${Math.round(SOCKETS * share)}`, '--hold', `${hold_s}s`];
    return bench('idle', cluster.servers, '--url', cluster.urls[0], ...counters(cluster), ...size);
  },
  /** Calls beside idle connections on each node, long enough for a ping of each. */
  mixed: async (cluster, { rate, seconds }) => {
    const holding = await Promise.all(cluster.urls.map((url) => hold(url, SOCKETS)));
    const pace = ['--rate', `${rate}`, '--pairs', '64', '--warm-up', '2s', '--duration', `${seconds}s`];
    try {
      const figures = await bench('calls', cluster.servers, ...places(cluster), ...counters(cluster), ...pace);
      return { ...figures, sockets: SOCKETS * cluster.urls.length + 128 };
    } finally {
      await Promise.all(holding.map((child) => stop(child)));
    }
  },
};

/** Connections that stay until their process ends. */
async function hold(url, sockets) {
  const child = start(OTHERS, switchboard, ['bench', 'idle', '--url', url, '--sockets', `${sockets}`, '--hold', '10m']);
  await says(child.stderr, /(held for)/);
  return child;
}

async function machine() {
  const { stdout: redis } = await run('redis-server', ['--version']);
  const { stdout: rust } = await run('rustc', ['--version']);
  const { version: socketIo } = JSON.parse(await readFile(new URL('node_modules/socket.io/package.json', import.meta.url)));
  return {
    date: new Date().toISOString().slice(0, 10),
    cores: cpus().length,
    cpu: cpus()[0].model.trim(),
    rust: rust.trim().split(' (')[0],
    node: process.versions.node,
    socketIo,
    redis: /v=([\d.]+)/.exec(redis)[1],
  };
}

const found = { machine: await machine(), rounds: ROUNDS, seconds: SECONDS, sockets: SOCKETS, rate: RATE, measured: {} };

try {
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [name, measurement] of wanted) {
      if (measurement.isOnce && round > 0) continue;
      // Alternating order, so that no kind is always the first.
      const kinds = round % 2 ? [...measurement.kinds].reverse() : measurement.kinds;
      for (const kind of kinds) {
        const result = await withNodes(kind, measurement, (cluster) => MODES[measurement.mode](cluster, measurement));
        ((found.measured[name] ??= {})[kind] ??= []).push(result);
        console.log(`round ${round + 1} of ${ROUNDS}, ${name}, ${kind}: ${JSON.stringify(result)}`);
      }
    }
  }
  await writeFile(results, JSON.stringify(found));
} finally {
  await clearUp();
}
await run(process.execPath, [fileURLToPath(new URL('page.mjs', import.meta.url))], { env: process.env }).then(({ stdout }) => console.log(stdout));
