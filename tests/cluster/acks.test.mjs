// Acks of messages across nodes: the message is with the receiver's connection, or with the node that is responsible
// for it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { answer, candidate, offer } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';

async function cluster(t, count) {
  const started = await startCluster(count);
  t.after(async () => {
    process.kill(started.redis.pid, 'SIGCONT');
    await started.stop();
  });
  return started;
}

/** An answered call between a device on the first node and one on the second. */
async function across(t, nodes) {
  const caller = await join(t, nodes[0], { userId: someone('alice'), deviceId: 'a' });
  const callee = await join(t, nodes[1], { userId: someone('bob'), deviceId: 'b' });
  const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
  await caller.ok('call:offer', { toUserId: callee.userId, offer: offer() });
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
  return { caller, callee, callId };
}

/** Sends numbered candidates without waiting; returns the set of those acknowledged so far. */
function sends(caller, toUserId, numbers) {
  const acked = new Map();
  for (const number of numbers) {
    caller.socket.emit('call:ice-candidate', { toUserId, candidate: candidate(number) }, (answered) => acked.set(number, answered));
  }
  return acked;
}

const heardBy = (callee) => callee.log.filter(({ event }) => event === 'call:ice-candidate').map(({ payload }) => payload.candidate.candidate);

test('nothing that was acknowledged is lost with a node that is killed while Redis stands still', async (t) => {
  const { nodes, redis } = await cluster(t, 3);
  const { caller, callee, callId } = await across(t, nodes);
  const toUserId = callee.userId;
  await caller.ok('call:ice-candidate', { toUserId, candidate: candidate(1) });
  process.kill(redis.pid, 'SIGSTOP');
  const acked = sends(caller, toUserId, Array.from({ length: 50 }, (_, index) => index + 2));
  // Other events of the socket get their replies meanwhile.
  await caller.ok('ice:servers', {});
  await pause(2_000);
  const told = [...acked].filter(([, { ok }]) => ok).map(([number]) => number);
  await nodes[0].kill('SIGKILL');
  process.kill(redis.pid, 'SIGCONT');
  const again = await join(t, nodes[2], { userId: caller.userId, deviceId: 'a' });
  assert.equal((await again.next('call:resumed')).callId, callId);
  // The client repeats unacknowledged messages until they are acknowledged.
  for (let number = 2; number <= 51; number += 1) {
    if (told.includes(number)) continue;
    const accepted = async () => (await again.ack('call:ice-candidate', { toUserId, candidate: candidate(number) })).ok;
    await eventually(accepted, `${number} is acknowledged`, 15_000);
  }
  const all = Array.from({ length: 51 }, (_, index) => candidate(index + 1).candidate);
  await eventually(() => all.every((one) => heardBy(callee).includes(one)), `all come; acknowledged before: ${told}`);
});

test('an ack waits while a message has not left, holds nothing else up, and is refused after a while', async (t) => {
  const { nodes, redis } = await cluster(t, 2);
  const { caller, callee } = await across(t, nodes);
  const toUserId = callee.userId;
  process.kill(redis.pid, 'SIGSTOP');
  const acked = sends(caller, toUserId, [1, 2, 3]);
  await pause(1_000);
  assert.equal(acked.size, 0);
  await eventually(() => acked.size === 3, 'the client is told to send them again', 10_000);
  for (const [, answered] of acked) assertRefused(answered, 'TEMPORARILY_UNAVAILABLE', { event: 'call:ice-candidate', toUserId });
  const late = sends(caller, toUserId, [4]);
  process.kill(redis.pid, 'SIGCONT');
  await eventually(() => late.get(4)?.ok, 'it is acknowledged when it has left', 10_000);
  const all = [1, 2, 3, 4].map((number) => candidate(number).candidate);
  await eventually(() => heardBy(callee).length === 4, 'all come');
  assert.deepEqual(heardBy(callee), all);
});
