// What traces cost: the same server without them, with one call in a hundred and with every call, in turn, several
// rounds; instructions under valgrind on one node, and CPU time on two nodes where every call goes across. `make
// bench-traces` builds what it needs. BASE names another build to measure beside it; ROUNDS and SECONDS change its size.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createServer as createNetServer } from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const switchboard = process.env.BIN ?? fileURLToPath(new URL('../target/release/switchboard', import.meta.url));
const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SECONDS = Number(process.env.SECONDS ?? 8);
const RATE = 200;
const RATE_IN_VALGRIND = 25;
const [SERVERS, OTHERS] = cpus().length > 1 ? ['0', '1'] : ['0', '0'];

const folder = await mkdtemp(join(tmpdir(), 'switchboard-traces-'));
const running = new Set();
let number = 0;

function start(core, command, args, env = {}) {
  const child = spawn('taskset', ['-c', core, 'setpriv', '--pdeathsig', 'KILL', '--', command, ...args], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running.add(child);
  child.once('close', () => running.delete(child));
  child.stderr.resume();
  return child;
}

async function stop(child, signal = 'SIGKILL') {
  child.kill(signal);
  if (running.has(child)) await once(child, 'close');
}

async function says(child, pattern) {
  for await (const chunk of child.stdout) {
    const [, found] = pattern.exec(chunk) ?? [];
    if (found === undefined) continue;
    child.stdout.resume();
    return found;
  }
  throw new Error('a server did not start');
}

async function startRedis() {
  const probe = createNetServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  const child = start(OTHERS, 'redis-server', ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '']);
  await says(child, /(ready to accept)/i);
  return { child, url: `redis://127.0.0.1:${port}` };
}

// A collector that takes everything and looks at nothing.
const collector = createServer((request, response) => request.resume().on('end', () => response.end())).listen(0, '127.0.0.1');
await once(collector, 'listening');
const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.address().port}` };
const sampled = (ratio) => ({ ...endpoint, OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: `${ratio}` });

const KINDS = {
  ...(process.env.BASE && { 'the build before': { binary: process.env.BASE } }),
  'without a collector': {},
  'sampled 0 %': { env: sampled(0) },
  'sampled 1 %': { env: sampled(0.01) },
  'sampled 100 %': { env: sampled(1) },
};

const settings = (redis) => [
  '--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0', '--database-url', `sqlite://${folder}/${(number += 1)}.db`,
  ...(redis ? ['--redis-url', redis.url, '--drain-window', '100ms'] : []),
];

const address = async (server) => (await says(server, /http:\/\/([^/]+)\//)).replace(/^/, 'ws://');

async function bench(servers, urls, ...more) {
  const pids = servers.map(({ pid }) => pid).join(',');
  const args = ['bench', 'calls', '--url', urls[0], '--callee-url', urls.at(-1), '--pid', pids, '--json', ...more];
  const { stdout } = await run('taskset', ['-c', OTHERS, switchboard, ...args]);
  return JSON.parse(stdout);
}

/** CPU time of two nodes, every call across. */
async function timed({ binary = switchboard, env = {} }) {
  const redis = await startRedis();
  const servers = [0, 1].map(() => start(SERVERS, binary, settings(redis), env));
  try {
    const urls = await Promise.all(servers.map(address));
    const figures = await bench(servers, urls, '--pairs', '64', '--rate', `${RATE}`, '--duration', `${SECONDS}s`);
    return figures.cpu_per_call_us;
  } finally {
    await Promise.all(servers.map((server) => stop(server)));
    await stop(redis.child);
  }
}

/** Instructions of one node, from when it serves on, by call; its clients join in that time too. */
async function counted({ binary = switchboard, env = {} }) {
  const out = join(folder, `callgrind.${(number += 1)}`);
  const valgrind = ['--tool=callgrind', '--instr-atstart=no', `--callgrind-out-file=${out}`, binary, ...settings()];
  const server = start(SERVERS, 'valgrind', valgrind, env);
  const url = await address(server);
  await run('callgrind_control', ['--instr=on', `${server.pid}`]);
  const figures = await bench([server], [url], '--pairs', '8', '--rate', `${RATE_IN_VALGRIND}`, '--warm-up', '0s', '--duration', `${SECONDS}s`);
  await stop(server, 'SIGTERM');
  const [, total] = /^(?:summary|totals): (\d+)/m.exec(await readFile(out, 'utf8'));
  return Number(total) / 1_000 / figures.calls;
}

const median = (values) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
const show = (values) => `${Math.round(median(values))} (${Math.round(Math.min(...values))}–${Math.round(Math.max(...values))})`;

try {
  const results = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, { counted: [], timed: [] }]));
  for (let round = 0; round < ROUNDS; round += 1) {
    const kinds = Object.entries(KINDS);
    // There and back: none is always the first.
    for (const [kind, settings] of round % 2 ? kinds.reverse() : kinds) {
      for (const [what, measure] of Object.entries({ counted, timed })) results[kind][what].push(await measure(settings));
      console.error(kind, JSON.stringify(results[kind]));
    }
  }
  console.log(`${ROUNDS} rounds of ${SECONDS} s in turn, ${new Date().toISOString().slice(0, 10)}.\n`);
  console.log('| | one node: thousand instructions a call | two nodes: µs of CPU a call |\n|---|---|---|');
  for (const [kind, { counted, timed }] of Object.entries(results)) console.log(`| ${kind} | ${show(counted)} | ${show(timed)} |`);
} finally {
  await Promise.all([...running].map((child) => stop(child)));
  collector.close();
  collector.closeAllConnections();
  await rm(folder, { recursive: true, force: true });
}
