// The seven flows of the original design, with clients written for it: they send `user-connected`, no `callId` and no
// `deviceId`, and request no acks. Every field of every event is checked.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { answer, candidate, offer } from '../support/calls.mjs';
import { assertShape, isIn, isNow, isText, someone } from '../support/check.mjs';
import { joinAsBefore } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

const callerInfo = { name: 'Alice', pic: 'https://example.org/alice.png' };

async function twoUsers(t, on = server) {
  const alice = await joinAsBefore(t, on, someone('alice'));
  const bob = await joinAsBefore(t, on, someone('bob'));
  return { alice, bob };
}

/** Alice calls Bob; both events are checked. */
async function ring(alice, bob, { ringTimeoutMs = 30_000, callType = 'video' } = {}) {
  alice.emit('call:initiate', { toUserId: bob.userId, callType, callerInfo });
  const incoming = await bob.next('call:incoming');
  assertShape(incoming, {
    fromUserId: alice.userId,
    callType,
    callerInfo,
    timestamp: isNow,
    callId: isText,
    expiresAt: isIn(ringTimeoutMs),
  });
  assertShape(await alice.next('call:ringing'), {
    callId: incoming.callId,
    toUserId: bob.userId,
    devices: 1,
    expiresAt: incoming.expiresAt,
  });
  return incoming.callId;
}

/** Bob answers Alice's offer. */
async function connectCall(alice, bob, callId) {
  alice.emit('call:offer', { toUserId: bob.userId, offer: offer() });
  assertShape(await bob.next('call:offer'), { fromUserId: alice.userId, offer: offer(), timestamp: isNow, callId });
  bob.emit('call:answer', { toUserId: alice.userId, answer: answer() });
  assertShape(await alice.next('call:answer'), { fromUserId: bob.userId, answer: answer(), timestamp: isNow, callId });
}

async function assertNothingElse(...clients) {
  for (const client of clients) await client.nothingElse({ after: clients });
}

describe('the flows of the original design', { concurrency: true }, () => {
  test('1: a call is answered, media is negotiated, the caller hangs up', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    await connectCall(alice, bob, callId);

    for (let number = 1; number <= 3; number += 1) {
      alice.emit('call:ice-candidate', { toUserId: bob.userId, candidate: candidate(number) });
      bob.emit('call:ice-candidate', { toUserId: alice.userId, candidate: candidate(100 + number) });
    }
    for (let number = 1; number <= 3; number += 1) {
      assertShape(await bob.next('call:ice-candidate'), { fromUserId: alice.userId, candidate: candidate(number), callId });
      assertShape(await alice.next('call:ice-candidate'), { fromUserId: bob.userId, candidate: candidate(100 + number), callId });
    }

    alice.emit('call:end', { toUserId: bob.userId, duration: 42 });
    assertShape(await bob.next('call:ended'), {
      fromUserId: alice.userId,
      duration: 42,
      timestamp: isNow,
      callId,
      reason: 'completed',
    });
    await assertNothingElse(alice, bob);
  });

  test('1: the callee may hang up too; without a reported duration the server says its own', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob, { callType: 'audio' });
    await connectCall(alice, bob, callId);
    bob.emit('call:end', { toUserId: alice.userId });
    assertShape(await alice.next('call:ended'), {
      fromUserId: bob.userId,
      duration: (seconds) => Number.isInteger(seconds) && seconds >= 0 && seconds < 10,
      timestamp: isNow,
      callId,
      reason: 'completed',
    });
    await assertNothingElse(alice, bob);
  });

  test('2: the callee rejects, with a reason', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    bob.emit('call:reject', { toUserId: alice.userId, reason: 'In a meeting' });
    assertShape(await alice.next('call:rejected'), {
      fromUserId: bob.userId,
      reason: 'In a meeting',
      timestamp: isNow,
      callId,
    });
    await assertNothingElse(alice, bob);
  });

  test('2: a rejection without a reason leaves the field out', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    bob.emit('call:reject', { toUserId: alice.userId });
    assertShape(await alice.next('call:rejected'), { fromUserId: bob.userId, timestamp: isNow, callId });
    await assertNothingElse(alice, bob);
  });

  test('3: the callee is in a call with someone else', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    await connectCall(alice, bob, callId);
    const carol = await joinAsBefore(t, server, someone('carol'));

    carol.emit('call:initiate', { toUserId: bob.userId, callType: 'audio' });
    const busy = await carol.next('call:busy');
    assertShape(busy, {
      fromUserId: bob.userId,
      message: 'User is currently on another call',
      timestamp: isNow,
      callId: (id) => isText(id) && id !== callId,
    });
    await assertNothingElse(carol, alice, bob);
  });

  test('3: the callee is already ringing for someone else', async (t) => {
    const { alice, bob } = await twoUsers(t);
    await ring(alice, bob);
    const carol = await joinAsBefore(t, server, someone('carol'));
    carol.emit('call:initiate', { toUserId: bob.userId, callType: 'video' });
    assert.equal((await carol.next('call:busy')).message, 'User is currently on another call');
    await assertNothingElse(carol, alice, bob);
  });

  test('3: the callee’s client says busy itself', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    bob.emit('call:busy', { toUserId: alice.userId });
    assertShape(await alice.next('call:busy'), {
      fromUserId: bob.userId,
      message: 'User is currently on another call',
      timestamp: isNow,
      callId,
    });
    await assertNothingElse(alice, bob);
  });

  test('4: the callee is offline', async (t) => {
    const alice = await joinAsBefore(t, server, someone('alice'));
    const nobody = someone('nobody');
    alice.emit('call:initiate', { toUserId: nobody, callType: 'audio', callerInfo });
    assertShape(await alice.next('call:error'), {
      type: 'RECIPIENT_OFFLINE',
      message: 'User is currently offline',
      toUserId: nobody,
      event: 'call:initiate',
      callId: isText,
    });
    await assertNothingElse(alice);
  });

  test('5: the caller cancels while it rings', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    alice.emit('call:end', { toUserId: bob.userId });
    assertShape(await bob.next('call:ended'), {
      fromUserId: alice.userId,
      duration: 0,
      timestamp: isNow,
      callId,
      reason: 'cancelled',
    });
    await assertNothingElse(alice, bob);
  });

  test('5: the callee ends while it rings, which declines', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    bob.emit('call:end', { toUserId: alice.userId });
    assertShape(await alice.next('call:ended'), {
      fromUserId: bob.userId,
      duration: 0,
      timestamp: isNow,
      callId,
      reason: 'declined',
    });
    await assertNothingElse(alice, bob);
  });

  test('6: nobody answers', async (t) => {
    const hasty = await startServer({ args: ['--ring-timeout', '600ms'] });
    t.after(() => hasty.stop());
    const { alice, bob } = await twoUsers(t, hasty);
    const began = Date.now();
    const callId = await ring(alice, bob, { ringTimeoutMs: 600 });
    for (const [told, other] of [[alice, bob], [bob, alice]]) {
      assertShape(await told.next('call:ended'), {
        fromUserId: other.userId,
        duration: 0,
        timestamp: isNow,
        callId,
        reason: 'no_answer',
      });
    }
    assert.ok(Date.now() - began >= 550, 'it rang for its time');
    await assertNothingElse(alice, bob);
  });

  test('7: a party disconnects during the call', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    await connectCall(alice, bob, callId);
    alice.close();
    assertShape(await bob.next('call:ended', undefined, 3_000), {
      fromUserId: alice.userId,
      duration: (seconds) => Number.isInteger(seconds) && seconds >= 0 && seconds < 10,
      timestamp: isNow,
      callId,
      reason: 'connection_lost',
    });
    await assertNothingElse(bob);
  });

  test('7: a party that gave no deviceId loses its network: the call ends at once', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    await connectCall(alice, bob, callId);
    await bob.drop();
    const ended = await alice.next('call:ended', undefined, 3_000);
    assert.equal(ended.callId, callId);
    assert.equal(ended.reason, 'connection_lost');
    await assertNothingElse(alice);
  });

  test('7: the caller disconnects while it rings: the callee stops ringing', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    alice.close();
    assertShape(await bob.next('call:ended', undefined, 3_000), {
      fromUserId: alice.userId,
      duration: 0,
      timestamp: isNow,
      callId,
      reason: 'cancelled',
    });
    await assertNothingElse(bob);
  });

  test('both hang up at once: neither sees an error', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const callId = await ring(alice, bob);
    await connectCall(alice, bob, callId);
    alice.emit('call:end', { toUserId: bob.userId, duration: 1 });
    bob.emit('call:end', { toUserId: alice.userId, duration: 1 });
    await alice.none('call:error', { after: [alice, bob] });
    await bob.none('call:error');
  });

  test('one after the other: the same two call again after each end', async (t) => {
    const { alice, bob } = await twoUsers(t);
    const seen = new Set();
    for (let round = 0; round < 3; round += 1) {
      for (const [caller, callee] of [[alice, bob], [bob, alice]]) {
        const callId = await ring(caller, callee);
        seen.add(callId);
        await connectCall(caller, callee, callId);
        callee.emit('call:end', { toUserId: caller.userId });
        await caller.next('call:ended');
        await assertNothingElse(alice, bob);
      }
    }
    assert.equal(seen.size, 6);
  });

  test('callerInfo that was not sent is left out', async (t) => {
    const { alice, bob } = await twoUsers(t);
    alice.emit('call:initiate', { toUserId: bob.userId, callType: 'audio' });
    assertShape(await bob.next('call:incoming'), {
      fromUserId: alice.userId,
      callType: 'audio',
      timestamp: isNow,
      callId: isText,
      expiresAt: isIn(30_000),
    });
  });
});
