// Shared by all measurements: servers on the first core, generator and dependencies on the second, in a temporary folder.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { target } from './results.mjs';

const TICKS_PER_SECOND = 100;

export const run = promisify(execFile);

export const switchboard = process.env.BIN ?? join(target, 'release/switchboard');
export const floor = join(target, 'floor/release/floor');
export const reference = fileURLToPath(new URL('reference.mjs', import.meta.url));

export const [SERVERS, OTHERS] = cpus().length > 1 ? ['0', '1'] : ['0', '0'];

export const folder = await mkdtemp(join(tmpdir(), 'switchboard-bench-'));
const running = new Set();
let number = 0;

/** A unique name in the folder. */
export const unused = (name) => join(folder, `${(number += 1)}.${name}`);

export function start(core, command, args, env = {}) {
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

export async function stop(child, signal = 'SIGKILL') {
  child.kill(signal);
  if (running.has(child)) await once(child, 'close');
}

/** Ends all processes and removes the folder. */
export async function clearUp() {
  await Promise.all([...running].map((child) => stop(child)));
  await rm(folder, { recursive: true, force: true });
}

/** The first group of a pattern in the output of a process. */
export async function says(stream, pattern) {
  let text = '';
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    text += chunk;
    const [, found] = pattern.exec(text) ?? [];
    if (found === undefined) continue;
    stream.resume();
    return found;
  }
  throw new Error(`it ended and did not say ${pattern}: ${text}`);
}

/** The address in the line that a server prints when it is ready. */
export const address = async (server) => `ws://${await says(server.stdout, /http:\/\/([^/\s]+)\//)}`;

export async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  return port;
}

export async function startRedis() {
  const port = await freePort();
  const child = start(OTHERS, 'redis-server', ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '']);
  await says(child.stdout, /(ready to accept)/i);
  return { child, address: `127.0.0.1:${port}`, url: `redis://127.0.0.1:${port}` };
}

/** Settings of a measured switchboard. */
export const settings = ({ redis, database = `sqlite://${unused('db')}` } = {}) => [
  '--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0', '--database-url', database, '--limits', 'off',
  ...(redis ? ['--redis-url', redis.url] : []),
];

/** Results of `switchboard bench` for some servers. */
export async function bench(mode, servers, ...args) {
  const pids = servers.map(({ pid }) => pid).join(',');
  const command = ['-c', OTHERS, switchboard, 'bench', mode, '--pid', pids, '--json', ...args];
  const { stdout } = await run('taskset', command, { maxBuffer: 1 << 22 });
  const figures = JSON.parse(stdout);
  const { lost = 0, disorder = 0, missed_starts: missed = 0 } = figures;
  if (lost + disorder + missed > 0) console.error(`${lost} candidates lost, ${disorder} out of order; ${missed} calls late`);
  return figures;
}

/** CPU time of a process and its children, ended ones included: fields 14 to 17 of stat (proc(5)). */
export function cpuSeconds(parent) {
  let ticks = 0;
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    const path = `/proc/${pid}/stat`;
    if (!existsSync(path)) continue;
    const stat = readFileSync(path, 'utf8');
    const [, ppid, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number);
    const [user, system, childrensUser, childrensSystem] = fields.slice(9, 13);
    if (Number(pid) === parent) ticks += user + system + childrensUser + childrensSystem;
    else if (ppid === parent) ticks += user + system;
  }
  return ticks / TICKS_PER_SECOND;
}
