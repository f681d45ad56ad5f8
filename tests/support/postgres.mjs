// A Postgres on a free port, in a folder of its own.

import { execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { chown, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { eventually } from './check.mjs';
import { freePort } from './cluster.mjs';
import { BINARY, privateFolder } from './server.mjs';

const run = promisify(execFile);

// Postgres refuses to run as root; then it runs as nobody.
const NOBODY = 65_534;
const isRoot = process.getuid() === 0;
const drop = isRoot ? ['--reuid=nobody', '--regid=nogroup', '--clear-groups'] : [];

/** Large enough for the whole history of a long run. */
const LONGEST_ANSWER = 256 * 1024 * 1024;

/**
 * Starts a Postgres and creates the schema, unless `schema` is false. With `diskMib` the data folder is a file system of
 * that size, if this user may mount one: then `hasDisk` is true. With `core` the server runs on that CPU core only.
 */
export async function startPostgres({ schema = true, settings = {}, diskMib, core } = {}) {
  const postgres = new Postgres(await privateFolder(), await freePort(), settings, core);
  if (diskMib) postgres.hasDisk = mountDisk(postgres.dir, diskMib);
  if (isRoot) await chown(postgres.dir, NOBODY, NOBODY);
  try {
    await postgres.init();
    await postgres.start();
    if (schema) await run(BINARY, ['migrate', '--database-url', postgres.url], { env: {} });
  } catch (error) {
    await postgres.stop().catch(() => {});
    throw error;
  }
  return postgres;
}

class Postgres {
  #holders = new Set();

  constructor(dir, port, settings, core) {
    this.dir = dir;
    this.port = port;
    this.pinning = core ? ['taskset', '-c', core] : [];
    this.settings = { listen_addresses: '127.0.0.1', fsync: 'off', max_connections: '100', ...settings };
    this.url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  }

  async init() {
    const data = join(this.dir, 'data');
    const settings = ['--username=postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--no-sync'];
    await run('setpriv', [...drop, '--', installed('initdb'), '--pgdata', data, ...settings], { cwd: this.dir });
  }

  async start() {
    const settings = Object.entries(this.settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
    const args = ['-D', join(this.dir, 'data'), '-p', `${this.port}`, '-k', this.dir, ...settings];
    const [program, ...rest] = [...this.pinning, 'setpriv', ...drop, '--pdeathsig', 'QUIT', '--', installed('postgres')];
    this.child = spawn(program, [...rest, ...args], {
      cwd: this.dir,
      stdio: 'ignore',
    });
    this.gone = once(this.child, 'close');
    await eventually(() => this.ask('SELECT 1').catch(() => false), 'Postgres answers');
  }

  get pid() {
    return this.child.pid;
  }

  get #psql() {
    return ['-qtAX', '-v', 'ON_ERROR_STOP=1', '-h', this.dir, '-p', `${this.port}`, '-U', 'postgres'];
  }

  /** The result of a statement: a line per row, with `|` between columns. */
  async ask(sql) {
    const { stdout } = await run('psql', [...this.#psql, '-c', sql], { maxBuffer: LONGEST_ANSWER });
    return stdout.trim();
  }

  /** Runs statements in a transaction that stays open until the returned function is called. */
  async hold(sql) {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'psql', ...this.#psql], { stdio: ['pipe', 'pipe', 'ignore'] });
    const gone = once(child, 'close').then(() => this.#holders.delete(child));
    this.#holders.add(child);
    child.stdin.write(`BEGIN; ${sql};\n\\echo held\n`);
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (said += text));
    await eventually(() => said.includes('held'), `held: ${sql}`);
    return async () => {
      child.stdin.end();
      await gone;
    };
  }

  /** The number of sessions that wait for a lock. */
  async waiting() {
    return Number(await this.ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"));
  }

  /** An orderly stop by default; SIGQUIT aborts. */
  async halt(signal = 'SIGINT') {
    this.child.kill(signal);
    await this.gone;
  }

  async stop() {
    for (const child of this.#holders) child.kill('SIGKILL');
    if (this.child && this.isRunning) {
      this.child.kill('SIGCONT');
      await this.halt('SIGQUIT');
    }
    if (this.hasDisk) spawnSync('umount', ['--lazy', this.dir]);
    await rm(this.dir, { recursive: true, force: true });
  }

  /** Kills the server with all its processes, as a power failure would. */
  async die() {
    const children = await readFile(`/proc/${this.pid}/task/${this.pid}/children`, 'utf8');
    this.child.kill('SIGKILL');
    for (const pid of children.split(' ').map(Number).filter(Boolean)) killIfThere(pid);
    await this.gone;
  }

  get isRunning() {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Fills its disk; the returned function frees the space. */
  async fillDisk() {
    const filler = join(this.dir, 'filler');
    const block = Buffer.alloc(1024 * 1024);
    const file = await open(filler, 'w');
    const { code } = await (async () => {
      for (;;) await file.write(block);
    })().catch((error) => error);
    await file.close();
    if (code !== 'ENOSPC') throw new Error(`the disk is not full: ${code}`);
    return () => rm(filler);
  }
}

function killIfThere(pid) {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended with its parent.
  }
}

/** Mounts a disk, and returns whether this user may. The disk is removed with this process, like the folder. */
function mountDisk(dir, mib) {
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${mib}m`, 'tmpfs', dir], { stdio: 'ignore' });
  if (status === 0) process.once('exit', () => removeDisk(dir));
  return status === 0;
}

function removeDisk(dir) {
  spawnSync('umount', ['--lazy', dir], { stdio: 'ignore' });
  rmSync(dir, { recursive: true, force: true });
}

/** Debian keeps the server's programs off the path. */
function installed(program) {
  const versions = '/usr/lib/postgresql';
  const newest = existsSync(versions) ? readdirSync(versions).sort((one, other) => Number(other) - Number(one)) : [];
  const found = newest.map((version) => join(versions, version, 'bin', program)).find((path) => existsSync(path));
  return found ?? program;
}
