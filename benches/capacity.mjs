// Extrapolates the measurements of run.mjs to larger systems, and checks the same sums against a fuller one.

import { readFileSync } from 'node:fs';
import { MIXED_RATE } from './measurements.mjs';

/** The last results of the presence part of `make bench-scale`. */
const presence = JSON.parse(readFileSync(new URL('scale/presence.json', import.meta.url)));

const USERS = [100_000, 1_000_000, 10_000_000];
const CALLS_PER_USER_AND_HOUR = 0.5;
const CONNECTIONS_PER_USER_AND_HOUR = 2;
/** The number of users whom each user watches, and of users who watch each, all of them connected. */
const CONTACTS = Number(process.env.CONTACTS ?? 50);
const CALL_S = 180;
/** Ended calls stay in Redis for a minute. */
const KEPT_S = 60;
/** MEMORY USAGE, in docs/operations/sizing.md. */
const REDIS_BYTES_PER_CALL = 1_100;
const REDIS_BYTES_PER_USER = 200;
/** Each node after the first that watches a user, by MEMORY USAGE. */
const REDIS_BYTES_PER_WATCHING_NODE = 41;
const SOCKETS_PER_NODE = 100_000;
/** Planned load of a core; the rest is a reserve for failures. */
const BUSY = 0.6;

const count = (number) => Math.ceil(number).toLocaleString('en');
const share = (number) => (number < 0.1 ? number.toFixed(3) : number.toFixed(1));
const bytes = (number) => (number >= 1e9 ? `${(number / 1e9).toFixed(1)} GB` : `${Math.round(number / 1e6)} MB`);

/** The part of docs/operations/performance.md; `middle` gives the median of a figure. */
export function capacity(middle, { sockets }) {
  const call = {
    cpu_us: middle('two_at_rate', 'switchboard', 'cpu_per_call_us'),
    redis_us: middle('two_at_rate', 'switchboard', 'redis_cpu_per_call_us'),
    redis_bytes: middle('two_at_rate', 'switchboard', 'redis_bytes_per_call'),
    rows_per_s: middle('one', 'switchboard, Postgres', 'postgres_rows_per_second'),
    postgres_us: middle('one', 'switchboard, Postgres', 'postgres_cpu_per_row_us'),
  };
  const node = {
    idle_us_per_s: middle('low', 'switchboard', 'idle_node_us_per_second'),
    redis_share: middle('ping', 'switchboard', 'idle_redis_cpu_percent') / 100,
    redis_commands_per_s: middle('ping', 'switchboard', 'idle_redis_commands_per_second'),
  };
  const connection = {
    cpu_us: middle('connect', 'switchboard', 'cpu_per_connect_us'),
    redis_us: middle('connect', 'switchboard', 'redis_cpu_per_connect_us'),
    memory_bytes: middle('ping', 'switchboard', 'memory_per_socket_kb') * 1_000,
    idle_us_per_s: middle('ping', 'switchboard', 'idle_cpu_per_socket_us') - node.idle_us_per_s / sockets,
  };
  node.memory_bytes = middle('ping', 'switchboard', 'memory_mib') * 1_048_576 - sockets * connection.memory_bytes;

  const columns = USERS.map((users) => {
    const calls = (users * CALLS_PER_USER_AND_HOUR) / 3_600;
    // Each connection also disconnects, at about the same cost.
    const moves = (2 * users * CONNECTIONS_PER_USER_AND_HOUR) / 3_600;
    // Each connection watches its contacts anew. A user comes and goes with each, and is busy in each call made or got.
    const watches = ((users * CONNECTIONS_PER_USER_AND_HOUR) / 3_600) * CONTACTS;
    const updates = ((users * (2 * CONNECTIONS_PER_USER_AND_HOUR + 4 * CALLS_PER_USER_AND_HOUR)) / 3_600) * CONTACTS;
    const parts = {
      pings: (users * connection.idle_us_per_s) / 1e6,
      moves: (moves * connection.cpu_us) / 1e6,
      calls: (calls * call.cpu_us) / 1e6,
      presence: (watches * presence.watch_node_us + updates * presence.update_node_us) / 1e6,
    };
    const cores = parts.pings + parts.moves + parts.calls + parts.presence;
    const nodes = Math.max(2, cores / (BUSY - node.idle_us_per_s / 1e6), users / SOCKETS_PER_NODE);
    const redisForPresence = (watches * presence.watch_redis_us + updates * presence.update_redis_us) / 1e6;
    const redis = (calls * call.redis_us + moves * connection.redis_us) / 1e6 + redisForPresence + Math.ceil(nodes) * node.redis_share;
    // The nodes that watch a user are one key.
    const watchers = presence.watch_redis_bytes + (Math.min(CONTACTS, Math.ceil(nodes)) - 1) * REDIS_BYTES_PER_WATCHING_NODE;
    const postgres = (calls * call.postgres_us) / 1e6;
    return {
      'users connected': count(users),
      'calls a second': count(calls),
      'connections that come or go, a second': count(moves),
      "nodes' cores for pings": share(parts.pings),
      "nodes' cores for coming and going": share(parts.moves),
      'contacts of a user': count(CONTACTS),
      'contacts that are watched anew, a second': count(watches),
      'changes of presence that are told, a second': count(updates),
      "nodes' cores for calls": share(parts.calls),
      "nodes' cores for presence": share(parts.presence),
      [`nodes (a core ${BUSY * 100} % busy, ${count(SOCKETS_PER_NODE)} connections)`]: count(nodes),
      'memory of all nodes': bytes(users * (connection.memory_bytes + CONTACTS * presence.watch_node_bytes) + Math.ceil(nodes) * node.memory_bytes),
      'cores of Redis, if one could have them': share(redis),
      'of them for presence': share(redisForPresence),
      [`cells, each with a Redis ${BUSY * 100} % busy`]: count(redis / BUSY),
      'memory of Redis': bytes(users * (REDIS_BYTES_PER_USER + watchers) + calls * (CALL_S + KEPT_S) * REDIS_BYTES_PER_CALL),
      'Redis, network a second': bytes(calls * call.redis_bytes),
      "cores of Postgres for history's rows": share(postgres),
    };
  });
  const [first, ...rest] = Object.keys(columns[0]);
  const line = (name) => `| ${[name, ...columns.map((column) => column[name])].join(' | ')} |`;
  const model = [line(first), `|---|${'---|'.repeat(columns.length)}`, ...rest.map(line)].join('\n');

  const units = [
    `| a call across nodes | ${call.cpu_us.toFixed(0)} µs of a node, ${call.redis_us.toFixed(0)} µs and ${(call.redis_bytes / 1_000).toFixed(0)} kB of Redis, ${call.postgres_us.toFixed(0)} µs of Postgres for its row, which took ${call.rows_per_s.toFixed(0)} rows a second from one node |`,
    `| a connection that comes | ${connection.cpu_us.toFixed(0)} µs of a node, ${connection.redis_us.toFixed(0)} µs of Redis |`,
    `| a connection that stays | ${(connection.memory_bytes / 1_000).toFixed(1)} kB; ${connection.idle_us_per_s.toFixed(2)} µs of CPU a second, for a ping in 25 s |`,
    `| a contact that is watched | ${presence.watch_node_us} µs of a node, ${presence.watch_redis_us} µs of Redis; ${presence.watch_node_bytes} bytes of a node, ${presence.watch_redis_bytes} of Redis |`,
    `| a change that one watcher is told | ${presence.update_node_us} µs of the nodes, ${presence.update_redis_us} µs of Redis |`,
    `| a node that idles | ${node.redis_commands_per_s.toFixed(1)} Redis commands a second, ${(node.redis_share * 100).toFixed(2)} % of Redis' core; ${(node.idle_us_per_s / 1e4).toFixed(2)} % of its own; ${bytes(node.memory_bytes)} |`,
  ];

  const held = middle('mixed', 'switchboard', 'sockets');
  const checks = [
    ["nodes' CPU, % of a core", (held * connection.idle_us_per_s + 2 * node.idle_us_per_s + MIXED_RATE * call.cpu_us) / 1e4, middle('mixed', 'switchboard', 'cpu_percent')],
    ["Redis' CPU, % of a core", (MIXED_RATE * call.redis_us) / 1e4, middle('mixed', 'switchboard', 'redis_cpu_percent')],
    ['memory of both nodes, MiB', (held * connection.memory_bytes + 2 * node.memory_bytes) / 1_048_576, middle('mixed', 'switchboard', 'memory_mib')],
  ].map(([what, predicted, measured]) => `| ${what} | ${predicted.toFixed(0)} | ${measured.toFixed(0)} | ${((measured / predicted - 1) * 100).toFixed(0)} % |`);

  return [
    'What the sums are made of, as measured above:',
    ['| | |', '|---|---|', ...units].join('\n'),
    `If each user makes ${CALLS_PER_USER_AND_HOUR} calls and connects ${CONNECTIONS_PER_USER_AND_HOUR} times in the busiest hour, calls last ${CALL_S} s, and every call is across nodes:`,
    model,
    `The same sums for two nodes with ${count(held)} connections and ${MIXED_RATE} calls/s across, beside what was measured:`,
    ['| | expected | measured | off by |', '|---|---|---|---|', ...checks].join('\n'),
  ].join('\n\n');
}
