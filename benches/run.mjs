// Measures switchboard beside a server written by hand in Node and beside a bare socketioxide relay, in turn, several
// rounds, and writes the table into docs/PERFORMANCE.md. `make bench` builds what it needs.
//
// Servers run on the first core, the generator and Redis on the second. ROUNDS, SECONDS and SOCKETS change its size.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const here = fileURLToPath(new URL('.', import.meta.url));
const switchboard = join(here, '../target/release/switchboard');
const floor = join(here, '../target/floor/release/floor');

const ROUNDS = Number(process.env.ROUNDS ?? 3);
const SECONDS = Number(process.env.SECONDS ?? 8);
const SOCKETS = Number(process.env.SOCKETS ?? 5_000);
const RATE = 200;
const [SERVERS, OTHERS] = cpus().length > 1 ? ['0', '1'] : ['0', '0'];

const folder = await mkdtemp(join(tmpdir(), 'switchboard-bench-'));
const running = new Set();

function start(core, command, args, env = {}) {
  const child = spawn('taskset', ['-c', core, 'setpriv', '--pdeathsig', 'KILL', '--', command, ...args], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running.add(child);
  child.once('close', () => running.delete(child));
  return child;
}

async function stop(child) {
  child.kill('SIGKILL');
  if (running.has(child)) await once(child, 'close');
}

/** The address in the line that a server prints when it is ready. */
async function ready(child) {
  let text = '';
  for await (const chunk of child.stdout) {
    text += chunk;
    const [, address] = /(http:\/\/[^/]+)\//.exec(text) ?? [];
    if (address) {
      child.stdout.resume();
      return address.replace('http', 'ws');
    }
  }
  throw new Error(`a server did not start: ${text}`);
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

async function startRedis() {
  const port = await freePort();
  const child = start(OTHERS, 'redis-server', ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '']);
  for await (const chunk of child.stdout) if (/ready to accept/i.test(chunk)) break;
  child.stdout.resume();
  return { child, address: `127.0.0.1:${port}`, url: `redis://127.0.0.1:${port}` };
}

/** How each server is started, alone or on a Redis. */
const KINDS = {
  switchboard: (number, redis) =>
    start(SERVERS, switchboard, [
      '--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0', '--database-url', `sqlite://${folder}/${Date.now()}-${number}.db`,
      '--limits', 'off',
      ...(redis ? ['--redis-url', redis.url] : []),
    ]),
  floor: (number, redis) => start(SERVERS, floor, [], redis ? { REDIS_URL: redis.url } : {}),
  node: (number, redis) => start(SERVERS, 'node', [join(here, 'reference.mjs')], redis ? { REDIS_URL: redis.url } : {}),
  'node, sharded': (number, redis) =>
    start(SERVERS, 'node', [join(here, 'reference.mjs')], { REDIS_URL: redis.url, ADAPTER: 'sharded' }),
};

/** One measurement of so many nodes of a kind; `options` says what `switchboard bench` is asked for. */
async function measure(kind, nodes, options) {
  const redis = nodes > 1 ? await startRedis() : undefined;
  const servers = Array.from({ length: nodes }, (_, number) => KINDS[kind](number, redis));
  try {
    const urls = await Promise.all(servers.map(ready));
    const [mode, ...rest] = options({ urls });
    const args = ['bench', mode, '--pid', servers.map((server) => server.pid).join(','), ...rest, '--json'];
    if (redis) args.push('--redis', redis.address);
    const { stdout } = await run('taskset', ['-c', OTHERS, switchboard, ...args], { maxBuffer: 1 << 20 });
    return JSON.parse(stdout);
  } finally {
    await Promise.all(servers.map(stop));
    if (redis) await stop(redis.child);
  }
}

const timing = ['--duration', `${SECONDS}s`, '--warm-up', '2s'];
const alone = ({ urls }) => ['calls', '--url', urls[0], '--pairs', '32', ...timing];
const across = (...more) => ({ urls }) =>
  ['calls', '--url', urls[0], '--callee-url', urls.slice(1).join(','), ...timing, ...more];
const idle = ({ urls }) => ['idle', '--url', urls[0], '--sockets', `${SOCKETS}`, '--hold', '5s'];

const MEASUREMENTS = [
  { title: 'one node, as fast as it goes', kinds: ['switchboard', 'floor', 'node'], nodes: 1, options: alone, figures: ['cpu_per_call_us', 'calls_per_second'] },
  { title: 'two nodes, every call across, as fast as they go', kinds: ['switchboard', 'floor', 'node', 'node, sharded'], nodes: 2, options: across('--pairs', '32'), figures: ['cpu_per_call_us', 'calls_per_second', 'redis_commands_per_call', 'redis_output_per_call_bytes'] },
  { title: `two nodes, every call across, ${RATE} calls/s`, kinds: ['switchboard', 'floor', 'node', 'node, sharded'], nodes: 2, options: across('--pairs', '64', '--rate', `${RATE}`), figures: ['cpu_per_call_us', 'relay_p50_ms', 'relay_p99_ms', 'redis_commands_per_call', 'redis_cpu_per_call_us'] },
  { title: `eight nodes, every call across, ${RATE} calls/s`, kinds: ['switchboard', 'floor', 'node'], nodes: 8, options: across('--pairs', '64', '--rate', `${RATE}`), figures: ['cpu_per_call_us', 'relay_p99_ms', 'redis_commands_per_call', 'redis_output_per_call_bytes'] },
  { title: `${SOCKETS} idle connections`, kinds: ['switchboard', 'floor', 'node'], nodes: 1, options: idle, figures: ['memory_per_socket_kib', 'cpu_per_connect_us'] },
];

const median = (values) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
const show = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

function table({ title, kinds, figures }, results) {
  const heads = figures.map((figure) => figure.replaceAll('_', ' '));
  const lines = [`### ${title[0].toUpperCase()}${title.slice(1)}`, '', `| | ${heads.join(' | ')} |`, `|---|${'---|'.repeat(heads.length)}`];
  const own = results.get('switchboard');
  for (const kind of kinds) {
    const cells = figures.map((figure) => {
      const values = results.get(kind).map((result) => result[figure] ?? 0);
      const ratio = kind === 'switchboard' ? '' : `, × ${show(median(values) / median(own.map((result) => result[figure])))}`;
      return `${show(median(values))} (${show(Math.min(...values))}–${show(Math.max(...values))}${ratio})`;
    });
    lines.push(`| ${kind} | ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

async function versions() {
  const { stdout: redis } = await run('redis-server', ['--version']);
  const { stdout: rust } = await run('rustc', ['--version']);
  const { version: socketIo } = JSON.parse(await readFile(join(here, 'node_modules/socket.io/package.json')));
  const date = new Date().toISOString().slice(0, 10);
  const [, redisVersion] = /v=([\d.]+)/.exec(redis);
  return `${date}, ${cpus().length} cores (${cpus()[0].model.trim()}), ${rust.trim().split(' (')[0]}, Node ${process.versions.node}, socket.io ${socketIo}, Redis ${redisVersion}; ${ROUNDS} rounds of ${SECONDS} s in turn.`;
}

try {
  const sections = [await versions()];
  for (const measurement of MEASUREMENTS) {
    const results = new Map(measurement.kinds.map((kind) => [kind, []]));
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const kind of measurement.kinds) {
        const result = await measure(kind, measurement.nodes, measurement.options);
        if (kind === 'switchboard') assert.equal(result.disorder ?? 0, 0, 'no candidate is lost or out of order');
        results.get(kind).push(result);
        console.log(`${measurement.title}: ${kind}: ${JSON.stringify(result)}`);
      }
    }
    sections.push(table(measurement, results));
    console.log(`\n${sections.at(-1)}\n`);
  }
  const page = join(here, '../docs/PERFORMANCE.md');
  const [before, , after] = (await readFile(page, 'utf8')).split(/(?:<!-- measured -->|<!-- end of measured -->)\n/);
  const measured = `<!-- measured -->\n${sections.join('\n\n')}\n<!-- end of measured -->\n`;
  await writeFile(page, `${before}${measured}${after ?? ''}`);
} finally {
  await Promise.all([...running].map(stop));
  await rm(folder, { recursive: true, force: true });
}
