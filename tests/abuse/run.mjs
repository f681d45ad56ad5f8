// Runs every attack in turn beside calls at a steady rate, each on a server of its own. Writes the table into
// docs/operations/security.md. `make abuse` builds what it needs.
//
// The server runs on the first core, the calls and the attack on the second; the attack has a lower priority than the
// calls, so that the server is what is measured. SECONDS and ONLY (a part of an attack's name) change the size; with
// ONLY nothing is written.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpus } from 'node:os';
import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ATTACKS } from '../support/attacks.mjs';
import { residentBytes } from '../support/memory.mjs';
import { scrape } from '../support/metrics.mjs';
import { BINARY, startServer, withoutSettings } from '../support/server.mjs';

const SECONDS = Number(process.env.SECONDS ?? 20);
const ONLY = process.env.ONLY ?? '';
const RATE = 20;
const [SERVER, OTHERS] = cpus().length > 1 ? ['0', '1'] : ['0', '0'];
const PAGE = fileURLToPath(new URL('../../docs/operations/security.md', import.meta.url));

function start(args) {
  const child = spawn('taskset', ['-c', OTHERS, 'setpriv', '--pdeathsig', 'KILL', '--', ...args], {
    env: withoutSettings(process.env),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [text, errors] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (more) => (text += more));
  child.stderr.setEncoding('utf8').on('data', (more) => (errors = (errors + more).slice(-1_000)));
  const done = once(child, 'close').then(() => {
    if (!text) throw new Error(`${args.join(' ')}: ${errors}`);
    return JSON.parse(text);
  });
  return { child, done };
}

/** The latencies of calls, from the attempt to the answer, and of candidates. */
async function calls(server, seconds) {
  const url = server.url.replace('http', 'ws');
  const args = ['bench', 'calls', '--json', '--url', url, '--rate', `${RATE}`, '--pairs', '8', '--warm-up', '1s', '--duration', `${seconds}s`];
  const figures = await start([BINARY, ...args]).done;
  if (figures.disorder > 0) throw new Error(`${figures.disorder} candidates were lost or overtaken`);
  return figures;
}

const mib = (bytes) => Math.round(bytes / 1024 / 1024);
const ms = (number) => (number === undefined ? '–' : number.toFixed(number < 10 ? 1 : 0));
const latency = (figures) => `${ms(figures.setup_p50_ms)} / ${ms(figures.setup_p99_ms)}`;

/** The server's counters: limits reached, and disconnected clients. */
async function answers(server, before, outcome) {
  const after = await scrape(server);
  const counted = ['switchboard_limits_hit_total', 'switchboard_slow_clients_closed_total', 'switchboard_sockets_closed_total']
    .flatMap((name) => Object.entries(after.byLabels(name, before)).map(([label, value]) => [`${name.replace('switchboard_', '').replace('_total', '')} ${label}`, value]));
  return [...Object.entries(outcome), ...counted].filter(([, value]) => value > 0).map(([what, value]) => `${what}: ${value}`).join(', ');
}

async function row(name) {
  const { seconds = SECONDS } = ATTACKS[name];
  const server = await startServer({ env: { SWITCHBOARD_LIMITS: 'off' } });
  try {
    await once(spawn('taskset', ['-acp', SERVER, `${server.pid}`], { stdio: 'ignore' }), 'close');
    const alone = await calls(server, Math.min(seconds, 10));
    const [memory, counted] = [await residentBytes(server), await scrape(server)];
    let peak = 0;
    const sampling = setInterval(async () => (peak = Math.max(peak, await residentBytes(server))), 100);
    const attack = start(['nice', '-n', '19', process.execPath, fileURLToPath(new URL('attacker.mjs', import.meta.url)), name, `${server.port}`]);
    await pause(1_000);
    const beside = await calls(server, seconds);
    attack.child.kill('SIGTERM');
    const outcome = await attack.done;
    clearInterval(sampling);
    const answered = await answers(server, counted, outcome);
    await pause(5_000);
    const after = await residentBytes(server);
    const cells = [name, ATTACKS[name].number, `${mib(memory)} / ${mib(peak)} / ${mib(after)}`, latency(alone), latency(beside), answered];
    return `| ${cells.join(' | ')} |`;
  } finally {
    await server.stop();
  }
}

const rows = [];
for (const name of Object.keys(ATTACKS).filter((name) => name.includes(ONLY))) {
  rows.push(await row(name));
  console.log(rows.at(-1));
}
if (!ONLY) {
  const head = '| attack | at once | memory before / peak / after, MiB | call set-up alone, p50 / p99, ms | beside the attack | what became of it |\n|---|---|---|---|---|---|';
  const page = await readFile(PAGE, 'utf8');
  const [begin, end] = ['<!-- abuse -->\n', '<!-- /abuse -->'];
  const from = page.indexOf(begin) + begin.length;
  await writeFile(PAGE, `${page.slice(0, from)}${head}\n${rows.join('\n')}\n${page.slice(page.indexOf(end))}`);
}
