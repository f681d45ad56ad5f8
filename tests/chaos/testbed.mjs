// The testbed: three nodes behind HAProxy, a Redis of some kind, and a Postgres on a small disk. All connections
// between them can be cut or delayed.

import { startBalancer } from '../support/balancer.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { residentBytes } from '../support/memory.mjs';
import { violationsOf } from '../support/metrics.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { startProxy } from '../support/proxy.mjs';
import { movableClock } from './clock.mjs';
import { startRedisCluster, startSentinels } from './redis.mjs';

/** Each process that is started has a listener for the end of this one. */
const MOST_PROCESSES = 100;
process.setMaxListeners(MOST_PROCESSES);

const REDIS = { single: () => startRedis(), sentinel: startSentinels, cluster: startRedisCluster };
/** Enough for the data of a run, and small enough to be filled quickly. */
const DISK_MIB = 256;
const SMALL_WAL = { max_wal_size: '64MB', min_wal_size: '32MB' };

/**
 * Settings that differ from the defaults: all clients have one address, a rolling stop should be shorter than 20 s, and
 * the log must show each call.
 */
export const SETTINGS = {
  SWITCHBOARD_LIMITS: 'off',
  SWITCHBOARD_DRAIN_WINDOW: '3s',
  RUST_LOG: 'info,switchboard::calls=debug,switchboard::gateway::session=debug',
};

// Unmounts disks and ends processes with this process; a signal alone would end it too soon.
for (const [signal, number] of Object.entries({ SIGINT: 2, SIGTERM: 15 })) process.once(signal, () => process.exit(128 + number));

/** Starts all services. `kind` is that of Redis: single, sentinel or cluster. */
export async function startTestbed(kind) {
  const testbed = new Testbed(kind);
  try {
    await testbed.start();
  } catch (error) {
    await testbed.stop().catch(() => {});
    throw error;
  }
  return testbed;
}

class Testbed {
  #started = [];

  constructor(kind) {
    this.kind = kind;
  }

  async start() {
    this.redis = await REDIS[this.kind]();
    this.postgres = this.#keep(await startPostgres({ settings: SMALL_WAL, diskMib: DISK_MIB }));
    this.postgresLink = this.#keep(await startProxy(this.postgres.port));
    const history = ['--database-url', this.postgres.url.replace(`:${this.postgres.port}/`, `:${this.postgresLink.port}/`)];
    // Stopping the cluster stops Redis, too.
    this.cluster = this.#keep(await startCluster(0, { redis: this.redis }));
    this.clock = this.#keep(await movableClock());
    if (this.kind === 'single') this.redisLink = this.#keep(await startProxy(this.redis.port));
    for (const special of [{}, this.#withClock(), this.#behindLink()]) {
      const node = await this.cluster.addNode({ args: history, ...special, env: { ...SETTINGS, ...special.env } });
      node.hasMovableClock = special.hasMovableClock === true;
    }
    this.balancer = this.#keep(await startBalancer(this.cluster.nodes, { reloads: true }));
  }

  /** The settings of the node whose clock can be moved, if libfaketime is installed. */
  #withClock() {
    return this.clock ? { env: this.clock.env, hasMovableClock: true } : {};
  }

  /** The settings of the node whose connection to Redis can be cut. */
  #behindLink() {
    return this.redisLink ? { redisUrl: `redis://127.0.0.1:${this.redisLink.port}` } : {};
  }

  #keep(part) {
    if (part) this.#started.push(part);
    return part;
  }

  get nodes() {
    return this.cluster.nodes;
  }

  get url() {
    return this.balancer.url;
  }

  /** The resident memory of all running nodes. */
  async memoryBytes() {
    const sizes = await Promise.all(this.nodes.filter((node) => node.isRunning).map(residentBytes));
    return sizes.reduce((sum, bytes) => sum + bytes, 0);
  }

  async violations() {
    return (await Promise.all(this.nodes.map(({ adminUrl }) => violationsOf(adminUrl)))).flat();
  }

  async stop() {
    for (const part of this.#started.reverse()) await part.stop();
    this.#started = [];
  }
}
