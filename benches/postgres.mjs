// A Postgres in a folder of its own, on the core of the generator.

import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { freePort, OTHERS, run, start, stop, unused } from './servers.mjs';

const TICKS_PER_SECOND = 100;

// Postgres refuses to run as root: run it as nobody then.
const isRoot = process.getuid() === 0;
const drop = isRoot ? ['--reuid=nobody', '--regid=nogroup', '--clear-groups'] : [];
const as = (user, flag) => Number(execFileSync('id', [flag, user]));

/** Debian keeps the server's programs off the path. */
function installed(program) {
  const versions = '/usr/lib/postgresql';
  const newest = existsSync(versions) ? readdirSync(versions).sort((one, other) => Number(other) - Number(one)) : [];
  return newest.map((version) => join(versions, version, 'bin', program)).find((path) => existsSync(path)) ?? program;
}

export async function startPostgres() {
  const folder = unused('postgres');
  mkdirSync(folder);
  if (isRoot) {
    chmodSync(dirname(folder), 0o755);
    chownSync(folder, as('nobody', '-u'), as('nobody', '-g'));
  }
  const port = await freePort();
  const data = join(folder, 'data');
  const shape = ['--username=postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--no-sync'];
  await run('setpriv', [...drop, '--', installed('initdb'), '--pgdata', data, ...shape], { cwd: folder });
  const args = ['-D', data, '-p', `${port}`, '-k', folder, '-c', 'listen_addresses=127.0.0.1'];
  const child = start(OTHERS, 'setpriv', [...drop, '--pdeathsig', 'QUIT', '--', installed('postgres'), ...args]);
  const ask = async (sql) => {
    const psql = ['-qtAX', '-h', folder, '-p', `${port}`, '-U', 'postgres', '-c', sql];
    return (await run('psql', psql)).stdout.trim();
  };
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    /** Rows written so far, and CPU time of all its processes. */
    used: async () => ({ rows: Number(await ask('SELECT count(*) FROM calls')), cpu_s: cpuSeconds(child.pid) }),
    stop: () => stop(child, 'SIGQUIT'),
  };
}

/** CPU time of a process and its children, ended ones included: fields 14 to 17 of stat (proc(5)). */
function cpuSeconds(parent) {
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
