// The measurements, their servers, and the columns of their tables.

export const RATE = 200;
export const LOW_RATE = 40;
export const STEADY_RATE = 2_000;
export const MIXED_RATE = 300;
/** Events of a call that go from one party to the other. */
export const EVENTS_PER_CALL = 24;

const BUSY = ['cpu_percent', 'own_cpu_percent'];
const BUSY_ON_REDIS = [...BUSY, 'redis_cpu_percent'];
const ALL_ON_REDIS = ['switchboard', 'floor', 'node', 'node, sharded'];

export const MEASUREMENTS = {
  one: {
    title: 'One node, as fast as it goes',
    mode: 'calls',
    nodes: 1,
    kinds: ['switchboard', 'floor', 'switchboard, no history', 'switchboard, Postgres', 'node'],
    figures: ['cpu_per_call_us', 'calls_per_second', ...BUSY],
  },
  one_at_rate: {
    title: `One node, ${STEADY_RATE} calls/s: what history costs where nobody waits for the generator`,
    mode: 'calls',
    nodes: 1,
    rate: STEADY_RATE,
    kinds: ['switchboard', 'floor', 'switchboard, no history', 'switchboard, Postgres'],
    figures: ['cpu_per_call_us', 'relay_p50_ms', 'relay_p99_ms', ...BUSY],
  },
  two: {
    title: 'Two nodes, every call across, as fast as they go',
    mode: 'calls',
    nodes: 2,
    kinds: ALL_ON_REDIS,
    figures: ['cpu_per_call_us', 'calls_per_second', 'redis_commands_per_call', 'redis_cpu_per_call_us', ...BUSY_ON_REDIS],
  },
  two_at_rate: {
    title: `Two nodes, every call across, ${RATE} calls/s`,
    mode: 'calls',
    nodes: 2,
    rate: RATE,
    kinds: ALL_ON_REDIS,
    figures: ['cpu_per_call_us', 'relay_p50_ms', 'relay_p99_ms', 'redis_commands_per_call', 'redis_bytes_per_call', 'redis_cpu_per_call_us', ...BUSY_ON_REDIS],
  },
  eight_at_rate: {
    title: `Eight nodes, every call across, ${RATE} calls/s`,
    mode: 'calls',
    nodes: 8,
    rate: RATE,
    kinds: ['switchboard', 'floor', 'node'],
    figures: ['cpu_per_call_us', 'relay_p50_ms', 'relay_p99_ms', 'redis_commands_per_call', 'redis_bytes_per_call', 'redis_cpu_per_call_us', ...BUSY_ON_REDIS],
  },
  low: {
    title: `Two nodes, every call across, ${LOW_RATE} calls/s: what is sent to Redis`,
    mode: 'low',
    nodes: 2,
    rate: LOW_RATE,
    seconds: 8,
    kinds: ['switchboard'],
    figures: ['net_redis_publishes_per_call', 'net_redis_scripts_per_call', 'net_redis_commands_per_call'],
  },
  idle: {
    title: 'Idle connections',
    mode: 'idle',
    nodes: 1,
    hold_s: 3,
    kinds: ['switchboard', 'floor', 'node'],
    figures: ['memory_per_socket_kb', 'cpu_per_connect_us'],
  },
  connect: {
    title: 'Connect, identify and announce presence, on a Redis',
    mode: 'idle',
    nodes: 1,
    onRedis: true,
    hold_s: 1,
    share: 0.5,
    kinds: ['switchboard', 'floor', 'node'],
    figures: ['cpu_per_connect_us', 'connects_per_second', 'redis_commands_per_connect', 'redis_cpu_per_connect_us'],
  },
  ping: {
    title: 'One ping of each idle connection, on a Redis',
    mode: 'idle',
    nodes: 1,
    onRedis: true,
    hold_s: 25,
    isOnce: true,
    kinds: ['switchboard'],
    figures: ['memory_per_socket_kb', 'idle_cpu_per_socket_us', 'idle_redis_commands_per_second', 'idle_redis_cpu_percent'],
  },
  mixed: {
    title: `Two nodes full of idle connections, ${MIXED_RATE} calls/s across`,
    mode: 'mixed',
    nodes: 2,
    rate: MIXED_RATE,
    seconds: 25,
    isOnce: true,
    kinds: ['switchboard'],
    figures: ['sockets', 'cpu_percent', 'memory_mib', 'redis_cpu_percent', 'relay_p99_ms'],
  },
};

const TWO_KINDS = (one, other) => ({ of: [one, 'switchboard'], to: [one, other] });

/** The targets: a figure of one measurement, or its ratio to that of another. */
export const TARGETS = [
  { what: 'CPU a call, one node, as fast as it goes', ...TWO_KINDS('one', 'floor'), figure: 'cpu_per_call_us', most: 0.8, than: 'of the relay' },
  { what: 'CPU a call, two nodes, as fast as they go', ...TWO_KINDS('two', 'node'), figure: 'cpu_per_call_us', most: 1 / 6, than: 'of Node, classic' },
  { what: 'the same', ...TWO_KINDS('two', 'node, sharded'), figure: 'cpu_per_call_us', most: 1 / 4, than: 'of Node, sharded' },
  { what: 'the same', ...TWO_KINDS('two', 'floor'), figure: 'cpu_per_call_us', most: 0.5, than: "of the relay's adapter" },
  { what: `CPU a call, two nodes, ${RATE} calls/s`, ...TWO_KINDS('two_at_rate', 'node'), figure: 'cpu_per_call_us', most: 1 / 5, than: 'of Node, classic' },
  { what: 'the same', ...TWO_KINDS('two_at_rate', 'floor'), figure: 'cpu_per_call_us', most: 0.6, than: "of the relay's adapter" },
  { what: `relay latency across, p99, ${RATE} calls/s`, ...TWO_KINDS('two_at_rate', 'node'), figure: 'relay_p99_ms', most: 1 / 8, than: 'of Node, classic' },
  { what: 'the same', ...TWO_KINDS('two_at_rate', 'floor'), figure: 'relay_p99_ms', most: 1, than: "of the relay's adapter" },
  ...[['CPU', 'cpu_per_call_us', 1.15], ['Redis commands', 'redis_commands_per_call', 1.05], ['Redis bytes', 'redis_bytes_per_call', 1.05]].map(
    ([name, figure, most]) => ({
      what: `${name} a call, eight nodes`, of: ['eight_at_rate', 'switchboard'], to: ['two_at_rate', 'switchboard'], figure, most, than: 'of two nodes',
    }),
  ),
  { what: `publishes a call across, ${LOW_RATE} calls/s`, of: ['low', 'switchboard'], figure: 'net_redis_publishes_per_call', most: EVENTS_PER_CALL, than: ', one an event' },
  { what: 'scripts and other requests a call across', of: ['low', 'switchboard'], figure: 'net_redis_scripts_per_call', most: 6, than: '' },
  { what: 'memory an idle connection', of: ['idle', 'switchboard'], figure: 'memory_per_socket_kb', most: 14, than: 'kB' },
  { what: 'the same', ...TWO_KINDS('idle', 'node'), figure: 'memory_per_socket_kb', most: 1, than: 'of Node' },
  { what: 'connect, identify, announce presence, with Redis', of: ['connect', 'switchboard'], figure: 'cpu_per_connect_us', most: 150, than: 'µs' },
  ...[['one', 'as fast as it goes'], ['one_at_rate', `${STEADY_RATE} calls/s`]].flatMap(([name, pace]) =>
    [['SQLite', 'switchboard'], ['Postgres', 'switchboard, Postgres']].map(([store, kind]) => ({
      what: `CPU a call with history in ${store}, ${pace}`,
      of: [name, kind], to: [name, 'switchboard, no history'], figure: 'cpu_per_call_us', most: 1.05, than: 'of that without',
    })),
  ),
];
