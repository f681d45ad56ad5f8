// Redis as in production: a master with a replica and three Sentinels, and a Cluster of three masters.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { eventually } from '../support/check.mjs';
import { freePort } from '../support/cluster.mjs';
import { privateFolder } from '../support/server.mjs';

const run = promisify(execFile);

/** A moving slot is divided between two servers for a while: scripts on it are redirected or told to wait. */
const BATCH = 10;
const BATCH_EVERY_MS = 20;

/** The reply of the Redis on a port, or nothing if there is none. */
export async function redisCli(port, ...command) {
  const asked = run('redis-cli', ['-p', `${port}`, ...command], { timeout: 5_000 });
  return asked.then(({ stdout }) => stdout.trim()).catch(() => '');
}

/** Several Redis servers that belong together, in one folder. */
class Together {
  servers = new Map();

  async spawn(port, settings, { file = [] } = {}) {
    const dir = join(this.dir, `${port}`);
    await mkdir(dir, { recursive: true });
    const common = ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '', '--dir', dir];
    await this.launch(port, [...file, ...(file.length ? [] : common), ...settings]);
  }

  async launch(port, args) {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'redis-server', ...args], { stdio: 'ignore' });
    this.servers.set(port, { child, args, gone: once(child, 'close') });
    await eventually(async () => /PONG/.test(await redisCli(port, 'PING')), 'Redis answers');
  }

  async kill(port) {
    const { child, gone } = this.servers.get(port);
    child.kill('SIGKILL');
    await gone;
  }

  async again(port) {
    await this.launch(port, this.servers.get(port).args);
  }

  async stop() {
    await Promise.all([...this.servers.keys()].map((port) => this.kill(port)));
    await rm(this.dir, { recursive: true, force: true });
  }
}

class Sentinels extends Together {
  static async start() {
    const redis = new Sentinels();
    redis.dir = await privateFolder();
    const [master, replica] = [await freePort(), await freePort()];
    redis.data = [master, replica];
    await redis.spawn(master, ['--repl-diskless-sync-delay', '0']);
    await redis.spawn(replica, ['--repl-diskless-sync-delay', '0', '--replicaof', '127.0.0.1', `${master}`]);
    await eventually(async () => /master_link_status:up/.test(await redisCli(replica, 'INFO', 'replication')), 'the replica follows');
    redis.sentinels = [await freePort(), await freePort(), await freePort()];
    for (const port of redis.sentinels) {
      const file = join(redis.dir, `sentinel-${port}.conf`);
      const lines = [
        `port ${port}`, 'bind 127.0.0.1', `sentinel monitor calls 127.0.0.1 ${master} 2`,
        'sentinel down-after-milliseconds calls 1000', 'sentinel failover-timeout calls 5000',
      ];
      await writeFile(file, `${lines.join('\n')}\n`);
      await redis.launch(port, [file, '--sentinel']);
    }
    const [first, ...others] = redis.sentinels;
    redis.url = `redis-sentinel://127.0.0.1:${first}?sentinelServiceName=calls${others.map((port) => `&node=127.0.0.1:${port}`).join('')}`;
    await redis.isWhole();
    return redis;
  }

  async master() {
    const [, port] = (await redisCli(this.sentinels[0], 'SENTINEL', 'GET-MASTER-ADDR-BY-NAME', 'calls')).split('\n');
    return Number(port);
  }

  /** All Sentinels know each other and a replica that follows. */
  async isWhole() {
    await eventually(async () => {
      const known = await Promise.all(this.sentinels.map((port) => redisCli(port, 'INFO', 'sentinel')));
      return known.every((text) => /status=ok.*slaves=1,sentinels=3/.test(text));
    }, 'the Sentinels know each other', 30_000);
    const replica = this.data[0] === (await this.master()) ? this.data[1] : this.data[0];
    await eventually(async () => /master_link_status:up/.test(await redisCli(replica, 'INFO', 'replication')), 'the replica follows', 30_000);
  }

  /** Kills the master; resolves when the Sentinels have promoted the replica. `repair` restarts the dead server. */
  async failOver() {
    const old = await this.master();
    await this.kill(old);
    await eventually(async () => (await this.master()) !== old, 'there is another master', 20_000);
    return old;
  }

  async repair(old) {
    await this.again(old);
    await this.isWhole();
  }

  dataPort() {
    return this.master();
  }
}

class RedisCluster extends Together {
  static async start() {
    const redis = new RedisCluster();
    redis.dir = await privateFolder();
    redis.ports = [];
    for (let number = 0; number < 3; number += 1) {
      const port = await portWithBus();
      redis.ports.push(port);
      await redis.spawn(port, ['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000']);
    }
    await run('redis-cli', ['--cluster', 'create', ...redis.ports.map((port) => `127.0.0.1:${port}`), '--cluster-yes']);
    for (const port of redis.ports) {
      await eventually(async () => /cluster_state:ok/.test(await redisCli(port, 'CLUSTER', 'INFO')), 'the cluster is whole');
    }
    const [first, ...others] = redis.ports;
    redis.url = `redis-cluster://127.0.0.1:${first}?${others.map((port) => `node=127.0.0.1:${port}`).join('&')}`;
    return redis;
  }

  /**
   * Moves the slot of a key or channel to the next server, with all its data, some keys at a time. Returns the number
   * of keys.
   */
  async moveSlotOf(key) {
    const slot = await redisCli(this.ports[0], 'CLUSTER', 'KEYSLOT', key);
    const ids = await Promise.all(this.ports.map((port) => redisCli(port, 'CLUSTER', 'MYID')));
    const owner = await this.#ownerOf(Number(slot));
    const at = ids.indexOf(owner);
    const to = (at + 1) % ids.length;
    await redisCli(this.ports[to], 'CLUSTER', 'SETSLOT', slot, 'IMPORTING', ids[at]);
    await redisCli(this.ports[at], 'CLUSTER', 'SETSLOT', slot, 'MIGRATING', ids[to]);
    let moved = 0;
    for (;;) {
      const keys = (await redisCli(this.ports[at], 'CLUSTER', 'GETKEYSINSLOT', slot, `${BATCH}`)).split('\n').filter(Boolean);
      if (keys.length === 0) break;
      await redisCli(this.ports[at], 'MIGRATE', '127.0.0.1', `${this.ports[to]}`, '', '0', '5000', 'KEYS', ...keys);
      moved += keys.length;
      await pause(BATCH_EVERY_MS);
    }
    for (const index of [to, at, ...this.ports.keys()]) {
      await redisCli(this.ports[index], 'CLUSTER', 'SETSLOT', slot, 'NODE', ids[to]);
    }
    return moved;
  }

  async #ownerOf(slot) {
    const lines = (await redisCli(this.ports[0], 'CLUSTER', 'NODES')).split('\n');
    const owns = (line) =>
      line.split(' ').slice(8).some((range) => {
        const [first, last = first] = range.split('-').map(Number);
        return first <= slot && slot <= last;
      });
    return lines.find(owns)?.split(' ')[0];
  }
}

/** A Cluster server has another port for its bus, 10,000 above. */
async function portWithBus() {
  for (;;) {
    const port = await freePort();
    if (port < 22_000) return port;
  }
}

export const startSentinels = () => Sentinels.start();
export const startRedisCluster = () => RedisCluster.start();
