// Formats the results of run.mjs: tables, targets, and the extrapolation to larger systems. A run of at least three rounds of
// everything goes into docs/operations/performance.md, a shorter one to the terminal; PAGE names another file for either.

import { readFile, writeFile } from 'node:fs/promises';
import { capacity } from './capacity.mjs';
import { MEASUREMENTS, TARGETS } from './measurements.mjs';
import { fromRoot, median, results } from './results.mjs';

const PAGE = fromRoot(process.env.PAGE ?? 'docs/operations/performance.md');
const found = JSON.parse(await readFile(results));
const { machine, measured } = found;

/** Derived figures. */
const DERIVED = {
  memory_per_socket_kb: (result) => result.memory_per_socket_kib * 1.024,
  redis_bytes_per_call: (result) => result.redis_input_per_call_bytes + result.redis_output_per_call_bytes,
};
const value = (result, figure) => DERIVED[figure]?.(result) ?? result[figure];
const values = (name, kind, figure) => measured[name]?.[kind]?.map((result) => value(result, figure));
const middle = (name, kind, figure) => {
  const all = values(name, kind, figure);
  return all && median(all);
};

const show = (number) => (number >= 100 ? number.toFixed(0) : number >= 10 ? number.toFixed(1) : number.toFixed(2));

const HEADS = {
  cpu_per_call_us: 'CPU a call, µs',
  cpu_per_connect_us: 'CPU a connection, µs',
  cpu_percent: "servers' core, %",
  own_cpu_percent: 'generator, %',
  redis_cpu_percent: 'Redis, %',
  redis_cpu_per_call_us: "Redis' CPU a call, µs",
  redis_cpu_per_connect_us: "Redis' CPU a connection, µs",
  memory_per_socket_kb: 'memory a connection, kB',
  memory_mib: 'memory of the nodes, MiB',
  idle_cpu_per_socket_us: 'CPU a connection a second, µs',
  idle_redis_commands_per_second: 'Redis commands a second',
  idle_redis_cpu_percent: 'Redis, %',
  net_redis_publishes_per_call: 'publishes a call',
  net_redis_scripts_per_call: 'scripts and questions about channels a call',
  net_redis_commands_per_call: 'commands a call, those in scripts too',
};
const head = (figure) => HEADS[figure] ?? figure.replaceAll('_per_', ' a ').replaceAll('_', ' ').replace(/ (ms|s)$/, ', $1');

// A share of a core has no ratio of its own.
const hasRatio = (figure, kind) => kind !== 'switchboard' && !figure.endsWith('percent');

function table(name, { title, kinds, figures }) {
  const lines = [`### ${title}`, '', `| | ${figures.map(head).join(' | ')} |`, `|---|${'---|'.repeat(figures.length)}`];
  for (const kind of kinds) {
    const cells = figures.map((figure) => {
      const all = values(name, kind, figure);
      const ratio = hasRatio(figure, kind) ? `; × ${show(median(all) / middle(name, 'switchboard', figure))}` : '';
      const range = all.length > 1 ? ` (${show(Math.min(...all))}–${show(Math.max(...all))}${ratio})` : ratio && ` (${ratio.slice(2)})`;
      return `${show(median(all))}${range}`;
    });
    lines.push(`| ${[kind, ...cells].join(' | ')} |`);
  }
  return lines.join('\n');
}

function targets() {
  const rows = TARGETS.flatMap(({ what, of, to, figure, most, than }) => {
    const [one, other] = [middle(...of, figure), to && middle(...to, figure)];
    if (one === undefined || (to && other === undefined)) return [];
    const reached = to ? one / other : one;
    const sign = to ? '× ' : '';
    return [`| ${what} | ≤ ${sign}${show(most)} ${than} | ${sign}${show(reached)} | ${reached <= most ? 'yes' : 'no'} |`];
  });
  return ['| | to be reached | measured | reached |', '|---|---|---|---|', ...rows].join('\n');
}

/** Over all measured calls of switchboard. */
function order() {
  const all = Object.values(measured).flatMap((kinds) => Object.entries(kinds));
  const own = all.filter(([kind]) => kind.startsWith('switchboard')).flatMap(([, all]) => all);
  const sum = (figure) => own.reduce((total, result) => total + (result[figure] ?? 0), 0);
  return `In all ${sum('calls')} calls of switchboard ${sum('lost')} candidates were lost and ${sum('disorder')} out of order.`;
}

const { date, cores, cpu, rust, node, socketIo, redis } = machine;
const about =
  `${date}, ${cores} cores (${cpu}), ${rust}, Node ${node}, socket.io ${socketIo}, Redis ${redis}; ` +
  `${found.rounds} rounds of ${found.seconds} s in turn, there and back; ${found.sockets} idle connections. ${order()}`;
const tables = Object.entries(MEASUREMENTS).filter(([name]) => measured[name]).map(([name, measurement]) => table(name, measurement));
const isWhole = Object.keys(MEASUREMENTS).every((name) => measured[name]);
const parts = {
  measured: [about, targets(), ...tables].join('\n\n'),
  ...(isWhole && { capacity: capacity(middle, found) }),
};
for (const text of Object.values(parts)) console.log(`${text}\n`);

if (process.env.PAGE || (isWhole && found.rounds >= 3)) {
  let page = await readFile(PAGE, 'utf8').catch(() => '<!-- measured -->\n<!-- end of measured -->\n<!-- capacity -->\n<!-- end of capacity -->\n');
  for (const [name, text] of Object.entries(parts)) {
    const [before, , after] = page.split(new RegExp(`(?:<!-- ${name} -->|<!-- end of ${name} -->)\n`));
    page = `${before}<!-- ${name} -->\n${text}\n<!-- end of ${name} -->\n${after ?? ''}`;
  }
  await writeFile(PAGE, page);
  console.log(`written to ${PAGE}`);
} else {
  console.log('A short run: nothing is written.');
}
