// Measures the cost of traces: the same server without them, with one call in a hundred and with every call, in turn, over several
// rounds; instructions under valgrind on one node, and CPU time on two nodes with every call across. `make bench-traces` builds the
// binaries. BASE names another build to compare with; ROUNDS and SECONDS change the size.

import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { median } from './results.mjs';
import { address, bench, clearUp, run, SERVERS, settings, start, startRedis, stop, switchboard, unused } from './servers.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SECONDS = Number(process.env.SECONDS ?? 8);
const RATE = 200;
const RATE_IN_VALGRIND = 25;

// A collector that accepts everything and parses nothing.
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

/** CPU time of two nodes, every call across. */
async function timed({ binary = switchboard, env = {} }) {
  const redis = await startRedis();
  const servers = [0, 1].map(() => start(SERVERS, binary, settings({ redis }), env));
  try {
    const urls = await Promise.all(servers.map(address));
    const timing = ['--rate', `${RATE}`, '--duration', `${SECONDS}s`];
    const figures = await bench('calls', servers, '--url', urls[0], '--callee-url', urls[1], '--pairs', '64', ...timing);
    return figures.cpu_per_call_us;
  } finally {
    await Promise.all(servers.map((server) => stop(server)));
    await stop(redis.child);
  }
}

/** Instructions of one node per call, from readiness on, joining clients included. */
async function counted({ binary = switchboard, env = {} }) {
  const out = unused('callgrind');
  const valgrind = ['--tool=callgrind', '--instr-atstart=no', `--callgrind-out-file=${out}`, binary, ...settings()];
  const server = start(SERVERS, 'valgrind', valgrind, env);
  const url = await address(server);
  await run('callgrind_control', ['--instr=on', `${server.pid}`]);
  const timing = ['--rate', `${RATE_IN_VALGRIND}`, '--warm-up', '0s', '--duration', `${SECONDS}s`];
  const figures = await bench('calls', [server], '--url', url, '--pairs', '8', ...timing);
  await stop(server, 'SIGTERM');
  const [, total] = /^(?:summary|totals): (\d+)/m.exec(await readFile(out, 'utf8'));
  return Number(total) / 1_000 / figures.calls;
}

const show = (values) => `${Math.round(median(values))} (${Math.round(Math.min(...values))}–${Math.round(Math.max(...values))})`;

try {
  const results = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, { counted: [], timed: [] }]));
  for (let round = 0; round < ROUNDS; round += 1) {
    const kinds = Object.entries(KINDS);
    // Alternating order, so that no kind is always the first.
    for (const [kind, settings] of round % 2 ? kinds.reverse() : kinds) {
      for (const [what, measure] of Object.entries({ counted, timed })) results[kind][what].push(await measure(settings));
      console.error(kind, JSON.stringify(results[kind]));
    }
  }
  console.log(`${ROUNDS} rounds of ${SECONDS} s in turn, ${new Date().toISOString().slice(0, 10)}.\n`);
  console.log('| | one node: thousand instructions a call | two nodes: µs of CPU a call |\n|---|---|---|');
  for (const [kind, { counted, timed }] of Object.entries(results)) console.log(`| ${kind} | ${show(counted)} | ${show(timed)} |`);
} finally {
  await clearUp();
  collector.close();
  collector.closeAllConnections();
}
