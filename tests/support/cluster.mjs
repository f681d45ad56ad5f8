// Several nodes on one Redis, which a test can use like one server.

import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { makeCertificate } from './certificate.mjs';
import { eventually } from './check.mjs';
import { Server, privateFolder } from './server.mjs';

/**
 * Starts `count` nodes on `redis`, or on a Redis of their own, which is stopped with them. `args` and `env` are added
 * to each node's settings; `binary` may be another build.
 */
export async function startCluster(count, { redis, ...options } = {}) {
  const cluster = new Cluster(redis ?? (await startRedis()));
  try {
    for (let number = 0; number < count; number += 1) await cluster.addNode(options);
  } catch (error) {
    await cluster.stop().catch(() => {});
    throw error;
  }
  return cluster;
}

class Cluster {
  #next = 0;

  constructor(redis) {
    this.redis = redis;
    this.nodes = [];
  }

  async addNode({ redisUrl = this.redis.url, args = [], env = {}, binary } = {}) {
    const node = await Server.create(['--redis-url', redisUrl, ...args], { SWITCHBOARD_DRAIN_WINDOW: '100ms', ...env }, binary);
    this.nodes.push(node);
    return node;
  }

  /** Each connection is made to the next node, as behind a load balancer. */
  get url() {
    return this.#turn().url;
  }

  get port() {
    return this.#turn().port;
  }

  #turn() {
    this.#next += 1;
    return this.nodes[this.#next % this.nodes.length];
  }

  logs() {
    return this.nodes.map((node) => node.logs()).join('');
  }

  async stop() {
    try {
      for (const node of this.nodes) if (node.isRunning) await node.stop();
    } finally {
      await this.redis.stop();
    }
  }
}

/**
 * Starts a Redis on `port`, or on a free one, in a folder of its own. With `tls` its `url` is of a port with a
 * certificate of the private authority `redis.authority`.
 */
export async function startRedis({ port, args = [], env = {}, tls = false } = {}) {
  const redis = new Redis(port ?? (await freePort()), args, env);
  redis.dir = await privateFolder();
  if (tls) await redis.addTls(await freePort());
  await redis.start();
  return redis;
}

class Redis {
  constructor(port, args, env) {
    this.port = port;
    this.args = args;
    this.env = { ...process.env, ...env };
    this.url = `redis://127.0.0.1:${port}`;
  }

  async start() {
    const settings = ['--port', `${this.port}`, '--bind', '127.0.0.1', '--save', '', '--dir', this.dir, ...this.args];
    this.child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'redis-server', ...settings], { env: this.env, stdio: 'ignore' });
    this.gone = once(this.child, 'close');
    await eventually(() => ask(this.port, 'PING'), 'Redis answers');
  }

  async addTls(port) {
    const { authority, certificate, key } = await makeCertificate(this.dir);
    this.authority = authority;
    this.url = `rediss://127.0.0.1:${port}`;
    const files = ['--tls-cert-file', certificate, '--tls-key-file', key, '--tls-ca-cert-file', authority];
    this.args = [...this.args, '--tls-port', `${port}`, '--tls-auth-clients', 'no', ...files];
  }

  get pid() {
    return this.child.pid;
  }

  /** Restarts Redis, empty or with its saved data. */
  async restart() {
    await this.halt();
    await this.start();
  }

  /** Stops Redis until `start`. */
  async halt() {
    this.child.kill('SIGKILL');
    await this.gone;
  }

  async stop() {
    await this.halt();
    await rm(this.dir, { recursive: true, force: true });
  }

  /** Saves the present data and so much more that loading it takes some time after a restart. */
  async saveMuch() {
    await ask(this.port, 'DEBUG POPULATE 4000 filler 1000');
    await ask(this.port, 'SAVE');
    this.args = [...this.args, '--key-load-delay', '500', '--loading-process-events-interval-bytes', '1024'];
  }

  /** Closes the connections with subscriptions, as Redis does with slow readers. Returns false if there are none. */
  async cutSubscriptions() {
    const answer = await ask(this.port, 'CLIENT KILL TYPE pubsub', (whole) => whole.endsWith('\r\n'));
    return /^:[1-9]/.test(answer);
  }

  /** The reply to a command with a one-line reply. */
  async ask(command) {
    return ask(this.port, command);
  }

  async keys() {
    const answer = await ask(this.port, 'KEYS *', (answer) => /^\*(\d+)\r\n/.test(answer));
    return [...answer.matchAll(/\r\n(sb:[^\r]*)\r\n/g)].map(([, key]) => key);
  }

  /** Redis' counters since its start: calls of each command, bytes, and CPU time. */
  async counted() {
    const info = await ask(this.port, 'INFO commandstats stats cpu', isWholeText);
    const number = (name) => Number(new RegExp(`${name}:([\\d.]+)`).exec(info)[1]);
    return {
      commands: Object.fromEntries([...info.matchAll(/cmdstat_([^:]+):calls=(\d+)/g)].map(([, name, calls]) => [name, Number(calls)])),
      bytes: number('total_net_input_bytes') + number('total_net_output_bytes'),
      cpuMs: 1_000 * (number('used_cpu_sys') + number('used_cpu_user')),
    };
  }
}

/**
 * A free port below the range from which the kernel takes the ports of connections (32768 and above): otherwise a
 * connection may take the port before its server listens there.
 */
export async function freePort() {
  for (;;) {
    const port = randomInt(10_000, 32_000);
    if (await isFree(port)) return port;
  }
}

const isFree = (port) =>
  new Promise((resolve) => {
    const server = createServer().once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });

const isWholeText = (answer) => {
  const [head, length] = /^\$(\d+)\r\n/.exec(answer) ?? [];
  return head !== undefined && answer.length >= head.length + Number(length);
};

/** The reply to one command; false if there is none. */
function ask(port, command, isWhole = (answer) => /^[+:-]/.test(answer)) {
  return new Promise((resolve) => {
    let answer = '';
    const socket = connect(port, '127.0.0.1', () => socket.write(`${command}\r\n`));
    const done = (result) => {
      socket.destroy();
      resolve(result);
    };
    socket
      .on('data', (data) => {
        answer += data;
        if (isWhole(answer)) done(answer);
      })
      .once('error', () => done(false));
  });
}
