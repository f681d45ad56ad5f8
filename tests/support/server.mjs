// Starts the real server for a test, with a port and a folder of its own, and removes everything afterwards.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { eventually } from './check.mjs';
import { violationsOf } from './metrics.mjs';

export const BINARY =
  process.env.SWITCHBOARD_BIN ?? fileURLToPath(new URL('../../target/debug/switchboard', import.meta.url));

const READY_LINE = /^switchboard is ready: open (http:\/\/[^ ]+:(\d+)\/)$/;
/** Lines that a process writes before it detects an error. */
const EARLY_LINES = /^.*(switchboard starts|health and metrics are at ).*\n/gm;
const ADMIN_LINE = /health and metrics are at (http:\/\/[^ ]+:(\d+))\//;
const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 20_000;

/** The number of nodes for tests that do not set it. */
const NODES = Number(process.env.TEST_NODES ?? 1);

/** For tests that restart the only process. */
export const ONE_NODE = { skip: NODES > 1 && 'it takes one process' };

/**
 * Tests do in a second what users do in an hour, so they run without the limits on human behaviour. Tests of limits and
 * of browsers have all limits.
 */
const HASTE = [
  'events', 'candidates', 'call-attempts', 'failed-tokens', 'requests', 'address-requests', 'history-reads', 'presence-ids',
  'address-presence-ids', 'floods',
].map((name) => `${name}=off`).join();

/** The settings of a server with the default limits. */
export const USUAL_LIMITS = { SWITCHBOARD_LIMITS: undefined };

/** Whether history is kept in Postgres. */
const ON_POSTGRES = process.env.TEST_POSTGRES === '1';

/**
 * Starts a server on a free port, with an empty history; `args` and `env` are added to its settings. With TEST_NODES it
 * is a cluster of that many nodes; with TEST_POSTGRES=1 its history is in a Postgres of its own.
 */
export async function startServer({ args = [], env = {} } = {}) {
  if (!ON_POSTGRES) return startNodes(args, env);
  const { startPostgres } = await import('./postgres.mjs');
  const postgres = await startPostgres();
  try {
    const server = await startNodes([...args, '--database-url', postgres.url], env);
    return beside(server, postgres);
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

async function startNodes(args, env) {
  if (NODES === 1) return Server.create(args, env);
  const { startCluster } = await import('./cluster.mjs');
  return startCluster(NODES, { args, env });
}

/** The server, whose `stop` also stops its database. */
function beside(server, database) {
  const stop = server.stop.bind(server);
  server.stop = async () => {
    try {
      await stop();
    } finally {
      await database.stop();
    }
  };
  return server;
}

export class Server {
  static async create(args, env, binary) {
    const server = new Server(args, env);
    server.binary = binary;
    server.dir = await privateFolder();
    server.db = join(server.dir, 'switchboard.db');
    try {
      await server.start();
    } catch (error) {
      await rm(server.dir, { recursive: true, force: true });
      throw error;
    }
    return server;
  }

  constructor(args, env) {
    this.args = args;
    this.env = env;
    this.listen = '127.0.0.1:0';
    this.adminListen = '127.0.0.1:0';
    this.earlierLogs = '';
  }

  async start() {
    if (this.process) this.earlierLogs = this.logs();
    const history = this.args.includes('--database-url') ? [] : ['--database-url', `sqlite://${this.db}`];
    const args = ['--listen', this.listen, '--admin-listen', this.adminListen, ...history, ...this.args];
    this.process = launch(args, { env: { SWITCHBOARD_LIMITS: HASTE, ...this.env }, dir: this.dir, binary: this.binary });
    const line = await firstLine(this.process);
    // The text of a line in either log format.
    const text = line.startsWith('{') ? JSON.parse(line).message : line;
    const [, address, port] = READY_LINE.exec(text) ?? assert.fail(`not the ready line: ${line}`);
    this.readyLine = line;
    this.url = address.slice(0, -1);
    this.port = Number(port);
    this.pid = this.process.child.pid;
    this.adminUrl = await adminUrlOf(this.process);
    // A restart uses the same ports, so that clients reconnect by themselves.
    this.listen = `127.0.0.1:${port}`;
    this.adminListen = new URL(this.adminUrl).host;
  }

  get isRunning() {
    return this.process.child.exitCode === null && this.process.child.signalCode === null;
  }

  /** Everything that the server wrote to stderr, including earlier starts. */
  logs() {
    return this.earlierLogs + this.process.stderr;
  }

  /** Stops the server, checks that it exited cleanly and without a panic, and removes its folder. */
  async stop() {
    try {
      await this.leave();
    } finally {
      await rm(this.dir, { recursive: true, force: true });
    }
  }

  /** Sends the signal and waits until the process has ended. The folder stays for a `start()`. */
  async kill(signal = 'SIGKILL') {
    this.process.child.kill(signal);
    return this.process.exit();
  }

  /** Stops cleanly and starts again with the same port, settings and history. */
  async restart() {
    await this.leave();
    await this.start();
  }

  async leave() {
    const violations = this.isRunning ? await violationsOf(this.adminUrl) : [];
    const { code, signal } = await this.kill('SIGTERM');
    const logs = this.logs();
    assert.ok(!/panicked at|RUST_BACKTRACE/.test(logs), `the server panicked:\n${logs}`);
    assert.deepEqual({ code, signal }, { code: 0, signal: null }, `the server did not leave cleanly:\n${logs}`);
    assert.deepEqual(violations, [], `what must never happen did:\n${logs}`);
  }
}

/** Runs the binary until it exits by itself: for invalid settings and for commands. */
export async function runToExit(args, { env = {}, dir } = {}) {
  const folder = dir ?? (await privateFolder());
  try {
    const run = launch(args, { env, dir: folder });
    const { code, signal } = await run.exit();
    const stderr = run.stderr.replace(EARLY_LINES, '');
    return { code, signal, stdout: run.stdout, stderr };
  } finally {
    if (!dir) await rm(folder, { recursive: true, force: true });
  }
}

/** A folder that is removed with this process, unless it was removed before. */
export async function privateFolder() {
  const dir = await mkdtemp(join(tmpdir(), 'switchboard-test-'));
  if (folders.size === 0) process.once('exit', removeFolders);
  folders.add(dir);
  return dir;
}

const folders = new Set();

function removeFolders() {
  for (const dir of folders) {
    try {
      rmSync(dir, { recursive: true, force: true });
    } catch {
      // A server that ends with this process still writes there, or a disk is mounted there.
    }
  }
}

/**
 * Starts the binary. The kernel kills it if this test process dies without having stopped it (`setpriv` execs the
 * server, so the process id is the server's).
 */
export function launch(args, { env = {}, dir, binary = BINARY }) {
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', binary, ...args], {
    cwd: dir,
    env: { ...withoutSettings(process.env), SWITCHBOARD_ADMIN_LISTEN: '127.0.0.1:0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const run = { child, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => (run.stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (run.stderr += text));
  const gone = once(child, 'close').then(([code, signal]) => ({ code, signal }));
  gone.catch(() => {});
  const atOurExit = () => child.kill('SIGKILL');
  process.on('exit', atOurExit);
  child.on('close', () => process.off('exit', atOurExit));

  run.exit = async () => {
    const late = setTimeout(() => {
      run.stderr += `\n(killed by the test: still running ${STOP_DEADLINE_MS} ms after it should have left)`;
      child.kill('SIGKILL');
    }, STOP_DEADLINE_MS);
    try {
      return await gone;
    } finally {
      clearTimeout(late);
    }
  };
  return run;
}

/** The admin URL of a process that `launch` started, even if it is not ready yet. */
export async function adminUrlOf(run) {
  const [, url] = await eventually(() => ADMIN_LINE.exec(run.stderr), 'the log tells where health and metrics are');
  return url;
}

// The caller's own settings must not leak into the server under test.
export function withoutSettings(env) {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !/^(SWITCHBOARD|OTEL)_/.test(name)));
}

function firstLine(run) {
  return new Promise((resolve, reject) => {
    const fail = (why) => {
      run.child.kill('SIGKILL');
      reject(new Error(`the server did not start: ${why}\nstdout: ${run.stdout}\nstderr: ${run.stderr}`));
    };
    const late = setTimeout(() => fail(`no ready line within ${START_DEADLINE_MS} ms`), START_DEADLINE_MS);
    run.child.stdout.on('data', () => {
      const end = run.stdout.indexOf('\n');
      if (end < 0) return;
      clearTimeout(late);
      resolve(run.stdout.slice(0, end));
    });
    run.child.on('error', (error) => {
      clearTimeout(late);
      fail(error.message);
    });
    run.child.on('close', (code) => {
      clearTimeout(late);
      fail(`it exited with code ${code}`);
    });
  });
}
