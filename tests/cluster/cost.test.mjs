// The cost of a call for Redis, by Redis' own counters. Periodic work (heartbeats, sweeps, canaries) is measured over a
// period of the same length and subtracted.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answer, candidate, candidates, offer } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';
import { row } from '../support/http.mjs';
import { scrape } from '../support/metrics.mjs';

const CALLS = 40;
const CANDIDATES = 10;
const OFFER = offer('o'.repeat(2_450));
const ANSWER = answer('a'.repeat(1_950));

// Commands that nodes send: all others run inside their scripts, and INFO is the test's own.
const SENT = ['evalsha', 'pubsub|shardnumsub', 'spublish'];

async function twoNodes(t) {
  const started = await startCluster(2);
  t.after(() => started.stop());
  return started;
}

async function pair(t, callersNode, calleesNode) {
  const caller = await join(t, callersNode, { userId: someone('alice'), deviceId: 'a' });
  const callee = await join(t, calleesNode, { userId: someone('bob'), deviceId: 'b' });
  return { caller, callee };
}

const steps = {
  async ring({ caller, callee }) {
    const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
    await callee.next('call:incoming');
    return callId;
  },
  async offer({ caller, callee }) {
    await caller.ok('call:offer', { toUserId: callee.userId, offer: OFFER });
    await callee.next('call:offer');
  },
  async answer({ caller, callee }) {
    await callee.ok('call:answer', { toUserId: caller.userId, answer: ANSWER });
    await caller.next('call:answer');
  },
  /** One at a time, each awaited, so that no two share a publish. */
  async candidates({ caller, callee }) {
    for (let number = 1; number <= CANDIDATES; number += 1) {
      for (const [from, to] of [[caller, callee], [callee, caller]]) {
        await from.ok('call:ice-candidate', { toUserId: to.userId, candidate: candidate(number) });
        await to.next('call:ice-candidate');
      }
    }
  },
  async end({ caller, callee }) {
    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
  },
};

async function wholeCall(pair) {
  for (const step of Object.values(steps)) await step(pair);
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** The difference between two readings in these commands; in all but INFO if none is named. */
function between(before, after, named = Object.keys(after.commands).filter((name) => name !== 'info')) {
  const commands = named.map((name) => [name, (after.commands[name] ?? 0) - (before.commands[name] ?? 0)]);
  return {
    commands: Object.fromEntries(commands),
    bytes: after.bytes - before.bytes,
    cpuMs: after.cpuMs - before.cpuMs,
  };
}

/** An idle period, with periodic work only. */
const idling = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The cost of `work` beyond that of an idle period of the same length after it. */
async function cost(redis, work) {
  const before = await redis.counted();
  const started = Date.now();
  await work();
  const after = await redis.counted();
  await idling(Date.now() - started);
  const [worked, idled] = [between(before, after), between(after, await redis.counted())];
  const total = ({ commands }) => sum(Object.values(commands));
  const publishes = ({ commands }) => commands.spublish ?? 0;
  return {
    commands: total(worked) - total(idled),
    publishes: publishes(worked) - publishes(idled),
    bytes: worked.bytes - idled.bytes,
    cpuMs: worked.cpuMs - idled.cpuMs,
  };
}

/** All rows are stored and marked as such in Redis: the last cost of a call, some time after its end. */
const stored = (nodes) =>
  eventually(async () => {
    const each = await Promise.all(nodes.map((node) => scrape(node)));
    return each.every((one) => one.value('switchboard_history_backlog_rows') === 0);
  }, 'all rows are written');

/** The cost of one whole call across two nodes of `count`. */
async function costOfCall(t, count) {
  const started = await startCluster(count);
  try {
    const two = await pair(t, started.nodes[0], started.nodes[1]);
    // From here on the links are established, and the users have a latest call.
    await wholeCall(two);
    await stored(started.nodes);
    const { commands, publishes, bytes, cpuMs } = await cost(started.redis, async () => {
      for (let number = 0; number < CALLS; number += 1) await wholeCall(two);
      await stored(started.nodes);
    });
    return {
      commands: commands / CALLS,
      publishes: publishes / CALLS,
      bytes: bytes / CALLS,
      cpuMs: cpuMs / CALLS,
    };
  } finally {
    await started.stop();
  }
}

test('a call across two nodes costs Redis the same with 2, 4 and 8 nodes', async (t) => {
  const costs = [];
  for (const count of [2, 4, 8]) {
    const { commands, publishes, bytes, cpuMs } = await costOfCall(t, count);
    costs.push({ nodes: count, publishes, others: commands - publishes, bytes });
    t.diagnostic(
      `${count} nodes: ${commands.toFixed(1)} commands, ${Math.round(bytes)} bytes and ${cpuMs.toFixed(2)} ms of Redis' CPU a call`,
    );
  }
  const spread = (numbers) => Math.max(...numbers) - Math.min(...numbers);
  // One command per node would make 6. A period may have one sweep more or less, and rows that are stored together are
  // marked together: more of them if the machine is busy.
  assert.ok(spread(costs.map(({ others }) => others)) <= 3, JSON.stringify(costs));
  // Nearly simultaneous messages may share a publish, more of them if the machine is busy.
  assert.ok(spread(costs.map(({ publishes }) => publishes)) <= 3, JSON.stringify(costs));
  const bytes = costs.map((one) => one.bytes);
  assert.ok(spread(bytes) <= 0.05 * Math.min(...bytes), JSON.stringify(costs));
});

test('what each step of a call costs Redis', async (t) => {
  const { nodes, redis } = await twoNodes(t);
  await wholeCall(await pair(t, nodes[0], nodes[1]));
  await stored(nodes);
  const names = ['join', ...Object.keys(steps)];
  const spent = Object.fromEntries([...names, 'stored'].map((name) => [name, { ms: 0, commands: {}, bytes: 0 }]));
  let [reading, at] = [await redis.counted(), Date.now()];
  const read = async () => {
    const [before, since] = [reading, at];
    [reading, at] = [await redis.counted(), Date.now()];
    return { ...between(before, reading), ms: at - since };
  };
  const add = (into, { commands, bytes, ms }) => {
    for (const [name, count] of Object.entries(commands)) into.commands[name] = (into.commands[name] ?? 0) + count;
    into.bytes += bytes;
    into.ms += ms;
  };
  for (let number = 0; number < CALLS; number += 1) {
    const two = await pair(t, nodes[0], nodes[1]);
    add(spent.join, await read());
    let callId;
    for (const [name, step] of Object.entries(steps)) {
      const answered = await step(two);
      callId ??= answered;
      add(spent[name], await read());
    }
    // A call is marked as stored after its row, which the writer gathers for a while first.
    await row(nodes[0], two.caller.userId, callId, ({ status }) => status === 'ended');
    await stored(nodes);
    add(spent.stored, await read());
  }
  await idling(2_000);
  const idle = await read();
  // The cost of a reading itself.
  const readings = [];
  while (readings.length < CALLS) readings.push(await read());
  const own = sum(readings.map(({ bytes }) => bytes)) / readings.length;
  const times = { join: 2 * CALLS, candidates: 2 * CANDIDATES * CALLS };
  const [counted, published] = [{}, {}];
  // Rows are gathered for so long that periodic work outweighs the cost of marking them, and varies by more than that.
  // Therefore the commands are told apart: a heartbeat asks for the time, reads and writes once and scans the nodes
  // twice; the query for calls that wait for the history counts them twice and scans two sets; the query for due calls
  // scans one.
  const ofStored = (command) => spent.stored.commands[command] ?? 0;
  const aCall = (count) => Math.round(count / CALLS);
  assert.deepEqual(
    {
      scripts: aCall(
        ofStored('evalsha') - ofStored('zrangebyscore') + ofStored('zcard') / 2 + ofStored('time'),
      ),
      reads: aCall(ofStored('hmget') - ofStored('time')),
      moves: aCall(ofStored('zadd') - ofStored('time')),
      checks: ofStored('pubsub|shardnumsub'),
    },
    { scripts: 1, reads: 1, moves: 1, checks: 0 },
  );
  for (const name of names) {
    const { ms, commands, bytes } = spent[name];
    const each = (counted, idled) => (counted - (idled * ms) / idle.ms) / (times[name] ?? CALLS);
    const command = (one) => each(commands[one] ?? 0, idle.commands[one] ?? 0);
    const inScripts = sum(Object.keys(commands).filter((one) => !SENT.includes(one)).map(command));
    const [scripts, checks, publishes] = SENT.map(command);
    const size = each(bytes - own * CALLS, idle.bytes - own);
    t.diagnostic(
      `${name}: ${scripts.toFixed(1)} scripts (${inScripts.toFixed(1)} commands in them), ` +
        `${checks.toFixed(1)} checks, ${publishes.toFixed(1)} publishes, ${Math.round(size)} bytes`,
    );
    counted[name] = [scripts, inScripts, checks].map((number) => Math.round(number) + 0);
    published[name] = publishes;
  }
  assert.deepEqual(counted, {
    join: [2, 9, 0],
    ring: [2, 13, 1],
    offer: [0, 0, 0],
    answer: [1, 4, 0],
    candidates: [0, 0, 0],
    end: [1, 11, 0],
  });
  const about = (number, expected) => assert.ok(Math.abs(number - expected) < 0.5, JSON.stringify(published));
  about(published.join, 0);
  // The record. The callee's node does not report that it rings: the caller's node knows.
  about(published.ring, 1);
  about(published.offer, 1);
  // The record and the answer itself, in one publish or two.
  about(published.answer, published.answer < 1.5 ? 1 : 2);
  about(published.candidates, 1);
  about(published.end, 1);
});

test('between two devices on one node only the transitions cost anything', async (t) => {
  const { nodes, redis } = await twoNodes(t);
  const two = await pair(t, nodes[0], nodes[0]);
  await steps.ring(two);
  await steps.offer(two);
  await steps.answer(two);
  const { commands, publishes } = await cost(redis, async () => {
    for (let number = 0; number < CALLS; number += 1) await steps.candidates(two);
  });
  // Both nodes' sweeps, heartbeats, pings and canaries, one more or less in each of two periods; 800 candidates were
  // sent.
  assert.ok(Math.abs(commands) <= 24, `${commands} commands`);
  assert.ok(Math.abs(publishes) <= 4, `${publishes} publishes`);
  const transitions = await cost(redis, async () => {
    await steps.end(two);
    await wholeCall(two);
  });
  assert.ok(Math.abs(transitions.publishes) <= 4, `${transitions.publishes} publishes`);
});

test('nodes with calls between them publish nothing but canaries while nobody sends', async (t) => {
  const started = await startCluster(4);
  t.after(() => started.stop());
  const { nodes } = started;
  const pairs = [];
  for (const [index, callers] of nodes.entries()) {
    for (const callees of nodes.slice(index + 1)) {
      const two = await pair(t, callers, callees);
      for (const name of ['ring', 'offer', 'answer', 'candidates']) await steps[name](two);
      pairs.push(two);
    }
  }
  const published = async (work) => {
    const before = await scrape(started);
    await work();
    return (await scrape(started)).byLabels('switchboard_node_publishes_total', before);
  };
  const areSilent = async () => {
    const { canary = 0, ...others } = await published(() => idling(3_000));
    return canary >= nodes.length && Object.keys(others).length === 0;
  };
  // The messages are confirmed after half a second.
  await eventually(areSilent, 'the nodes are silent', 12_000);
  // And again after some more; no link reports its progress more than a few times meanwhile.
  const { messages, progress, receipt } = await published(async () => {
    for (const two of pairs) await steps.candidates(two);
    await eventually(areSilent, 'the nodes are silent', 12_000);
  });
  assert.ok(messages >= pairs.length * 2, `${messages} publishes with messages`);
  const directions = nodes.length * (nodes.length - 1);
  assert.ok(progress >= directions && progress <= 4 * directions, `${progress} reports`);
  assert.ok(receipt >= directions && receipt <= progress, `${receipt} receipts`);
});

test('what waits for the same node travels together', async (t) => {
  const { nodes, redis } = await twoNodes(t);
  const { caller, callee } = await pair(t, nodes[0], nodes[1]);
  await steps.ring({ caller, callee });
  await steps.answer({ caller, callee });
  const sent = candidates(200);
  let received;
  const { publishes } = await cost(redis, async () => {
    for (const one of sent) caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one });
    received = await callee.nextFew('call:ice-candidate', sent.length);
  });
  assert.deepEqual(received.map((one) => one.candidate), sent);
  t.diagnostic(`${sent.length} candidates in ${publishes} publishes`);
  assert.ok(publishes < sent.length / 2, `${publishes} publishes`);
});
