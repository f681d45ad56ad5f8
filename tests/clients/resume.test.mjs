// A device with a `deviceId` that loses its network resumes its call within the grace.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { activeCall, answer, assertTalking, candidate, candidates, offer, pickUp, ringing } from '../support/calls.mjs';
import { assertRefused, assertShape, isIn, isNow, isText, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const GRACE_MS = 10_000;
const SHORT_GRACE_MS = 500;

const server = await startServer();
const hasty = await startServer({ args: ['--reconnect-grace', `${SHORT_GRACE_MS}ms`] });
after(() => server.stop());
after(() => hasty.stop());

const onDevices = { caller: { deviceId: 'laptop' }, callee: { deviceId: 'phone' } };

/** Breaks the device's network; its peer is notified. */
async function lose(device, peer, { callId, graceMs = GRACE_MS }) {
  await device.drop();
  const told = await peer.next('call:peer-reconnecting');
  assertShape(told, { fromUserId: device.userId, graceEndsAt: isIn(graceMs), callId });
  return told;
}

/** Reconnects the device; both sides are notified. */
async function regain(device, peer, { callId }) {
  await device.comeBack();
  const resumed = await device.next('call:resumed');
  assert.equal(resumed.callId, callId);
  assertShape(await peer.next('call:peer-reconnected'), { fromUserId: device.userId, callId });
  return resumed;
}

describe('a lost network', { concurrency: true }, () => {
  for (const who of ['caller', 'callee']) {
    test(`during the call, of the ${who}'s device`, async (t) => {
      const call = await activeCall(t, server, onDevices);
      const { caller, callee, callId } = call;
      const [device, peer] = who === 'caller' ? [caller, callee] : [callee, caller];

      const { graceEndsAt } = await lose(device, peer, call);
      const seenByPeer = (await peer.ok('call:sync', {})).call;
      assert.equal(seenByPeer.status, 'answered');
      assert.equal(seenByPeer.graceEndsAt, graceEndsAt);

      const resumed = await regain(device, peer, call);
      assertShape(resumed, {
        callId,
        caller: caller.userId,
        receiver: callee.userId,
        callType: 'video',
        status: 'answered',
        createdAt: isNow,
        startedAt: isNow,
      });
      assert.deepEqual((await device.ok('call:sync', {})).call, resumed);
      assert.ok(!('graceEndsAt' in (await peer.ok('call:sync', {})).call));
      await assertTalking(caller, callee);
      await caller.nothingElse({ after: [callee] });
      await callee.nothingElse({ after: [caller] });
    });
  }

  test('what was relayed meanwhile follows in order', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee } = call;
    await lose(callee, caller, call);
    const toUserId = callee.userId;
    await caller.ok('call:offer', { toUserId, offer: offer('restart') });
    for (const one of candidates(30)) caller.emit('call:ice-candidate', { toUserId, candidate: one });
    await caller.ok('call:ice-candidate', { toUserId, candidate: null });
    const before = callee.log.length;
    await regain(callee, caller, call);
    await caller.ok('call:ice-candidate', { toUserId, candidate: candidate(99) });
    await callee.next('call:ice-candidate', (event) => event.candidate?.candidate === candidate(99).candidate);

    const came = callee.log.slice(before);
    assert.deepEqual(came.map(({ event }) => event), ['call:resumed', 'call:offer', ...Array(32).fill('call:ice-candidate')]);
    assert.deepEqual(came[1].payload.offer, offer('restart'));
    assert.deepEqual(came.slice(2).map(({ payload }) => payload.candidate), [...candidates(30), null, candidate(99)]);
  });

  test('while it rings, of the caller’s device', async (t) => {
    const call = await ringing(t, server, onDevices);
    const { caller, callee, callId } = call;
    await lose(caller, callee, call);
    const resumed = await regain(caller, callee, call);
    assertShape(resumed, {
      callId,
      caller: caller.userId,
      receiver: callee.userId,
      callType: 'video',
      status: 'pending',
      createdAt: isNow,
      expiresAt: isIn(30_000),
    });
    await pickUp(callee, caller);
    await assertTalking(caller, callee);
  });

  test('of the caller’s device, and the callee answers meanwhile', async (t) => {
    const call = await ringing(t, server, onDevices);
    const { caller, callee } = call;
    await lose(caller, callee, call);
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await callee.ok('call:ice-candidate', { toUserId: caller.userId, candidate: candidate(1) });
    const resumed = await regain(caller, callee, call);
    assert.equal(resumed.status, 'answered');
    assert.deepEqual((await caller.next('call:answer')).answer, answer());
    assert.deepEqual((await caller.next('call:ice-candidate')).candidate, candidate(1));
    await assertTalking(caller, callee);
  });

  test('of a ringing device changes nothing: it rings again when it is back', async (t) => {
    const { caller, callee, callId } = await ringing(t, server, onDevices);
    await callee.drop();
    await caller.nothingElse();
    await callee.comeBack();
    assert.equal((await callee.next('call:incoming')).callId, callId);
    assert.deepEqual((await callee.next('call:offer')).offer, offer());
    await callee.nothingElse();
    await pickUp(callee, caller);
    await assertTalking(caller, callee);
  });

  test('of both devices', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee, callId } = call;
    await lose(caller, callee, call);
    await callee.drop();
    await caller.comeBack();
    const first = await caller.next('call:resumed');
    assert.equal(first.callId, callId);
    await callee.comeBack();
    assert.equal((await callee.next('call:resumed')).callId, callId);
    assert.equal((await caller.next('call:peer-reconnected')).callId, callId);
    await assertTalking(caller, callee);
  });

  test('again and again', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee } = call;
    for (let round = 0; round < 10; round += 1) {
      const [device, peer] = round % 2 ? [caller, callee] : [callee, caller];
      await lose(device, peer, call);
      await regain(device, peer, call);
      await assertTalking(caller, callee);
    }
    await caller.ok('call:end', { toUserId: callee.userId });
    assert.equal((await callee.next('call:ended')).reason, 'completed');
  });

  test('the library reconnects by itself and the call is there', async (t) => {
    const byItself = { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 100 };
    for (const transports of [['websocket'], ['polling'], ['polling', 'websocket']]) {
      const call = await activeCall(t, server, {
        caller: { deviceId: 'laptop', transports, ...byItself },
        callee: { deviceId: 'phone' },
      });
      const { caller, callee, callId } = call;
      caller.socket.io.engine.close();
      await callee.next('call:peer-reconnecting');
      assert.equal((await caller.next('call:resumed')).callId, callId);
      await callee.next('call:peer-reconnected');
      await assertTalking(caller, callee);
    }
  });
});

describe('the grace', { concurrency: true }, () => {
  for (const who of ['caller', 'callee']) {
    test(`is over during the call, of the ${who}`, async (t) => {
      const call = await activeCall(t, hasty, onDevices);
      const { caller, callee, callId } = call;
      const [device, peer] = who === 'caller' ? [caller, callee] : [callee, caller];
      const began = Date.now();
      await lose(device, peer, { callId, graceMs: SHORT_GRACE_MS });
      assertShape(await peer.next('call:ended'), {
        fromUserId: device.userId,
        duration: (seconds) => Number.isInteger(seconds) && seconds >= 0 && seconds < 10,
        timestamp: isNow,
        callId,
        reason: 'connection_lost',
      });
      assert.ok(Date.now() - began >= SHORT_GRACE_MS - 50, 'it had its grace');

      await device.comeBack();
      await device.none('call:resumed');
      assert.equal((await device.ok('call:sync', {})).call, null);
      assert.equal((await device.ok('call:sync', { callId })).call.reason, 'connection_lost');
      await device.ok('call:initiate', { toUserId: peer.userId, callType: 'audio' });
    });
  }

  test('is over while it rings: the call is cancelled', async (t) => {
    const { caller, callee, callId } = await ringing(t, hasty, onDevices);
    await lose(caller, callee, { callId, graceMs: SHORT_GRACE_MS });
    assertShape(await callee.next('call:ended'), {
      fromUserId: caller.userId,
      duration: 0,
      timestamp: isNow,
      callId,
      reason: 'cancelled',
    });
  });

  test('is over for both', async (t) => {
    const { caller, callee, callId } = await activeCall(t, hasty, onDevices);
    await caller.drop();
    await callee.drop();
    const witness = await join(t, hasty, { userId: caller.userId, deviceId: 'other' });
    const observer = await join(t, hasty, { userId: someone('carol') });
    // Both users are available again once the call has ended.
    const busy = async () => (await observer.ok('presence:subscribe', { userIds: [caller.userId] })).presence[caller.userId] === 'busy';
    if (await busy()) await observer.next('presence:update', (update) => update.status !== 'busy');
    assert.equal((await witness.ok('call:sync', { callId })).call.reason, 'connection_lost');
  });

  test('is not for those who leave on purpose', async (t) => {
    const { caller, callee } = await activeCall(t, server, onDevices);
    const began = Date.now();
    caller.close();
    assert.equal((await callee.next('call:ended')).reason, 'connection_lost');
    assert.ok(Date.now() - began < GRACE_MS / 2);
    await callee.none('call:peer-reconnecting');

    const ring = await ringing(t, server, onDevices);
    ring.caller.close();
    assert.equal((await ring.callee.next('call:ended', undefined, GRACE_MS / 2)).reason, 'cancelled');
  });

  test('the peer may hang up meanwhile', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee, callId } = call;
    await lose(callee, caller, call);
    const ended = await caller.ok('call:end', { toUserId: callee.userId });
    assert.equal(ended.reason, 'completed');
    await callee.comeBack();
    await callee.none('call:resumed');
    assert.equal((await callee.ok('call:sync', {})).call, null);
    assert.equal((await callee.ok('call:sync', { callId })).call.reason, 'completed');
  });

  test('keeps the user busy for others', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee } = call;
    await lose(callee, caller, call);
    const carol = await join(t, server, { userId: someone('carol') });
    const other = await join(t, server, { userId: callee.userId, deviceId: 'other' });
    assert.equal((await carol.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' })).reason, 'busy');
    await other.nothingElse({ after: [carol] });
    await regain(callee, caller, call);
    await assertTalking(caller, callee);
  });
});

describe('which device has the call', { concurrency: true }, () => {
  test('another deviceId of the same user does not take it', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee } = call;
    await lose(callee, caller, call);
    const other = await join(t, server, { userId: callee.userId, deviceId: 'tablet' });
    await other.nothingElse();
    const refused = await other.ack('call:offer', { toUserId: caller.userId, offer: offer() });
    assert.match(refused.error.type, /^(NO_ACTIVE_CALL|ALREADY_ANSWERED)$/);
    await caller.none('call:peer-reconnected', { after: [other] });
    await regain(callee, caller, call);
  });

  test('the same deviceId of another user does not take it', async (t) => {
    const call = await activeCall(t, server, onDevices);
    await lose(call.callee, call.caller, call);
    const stranger = await join(t, server, { userId: someone('mallory'), deviceId: 'phone' });
    await stranger.nothingElse();
    await call.caller.none('call:peer-reconnected');
  });

  test('a second socket with the same deviceId takes it over; the first is told', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server, onDevices);
    const successor = await join(t, server, { userId: callee.userId, deviceId: 'phone' });
    assert.equal((await successor.next('call:resumed')).callId, callId);
    assertShape(await callee.next('call:ended'), {
      fromUserId: caller.userId,
      duration: Number.isInteger,
      timestamp: isNow,
      callId,
      reason: 'resumed_elsewhere',
    });
    await assertTalking(caller, successor);
    callee.close();
    await assertTalking(caller, successor);
    await caller.none('call:ended');
  });

  test('after user-connected too', async (t) => {
    const call = await activeCall(t, server, onDevices);
    await lose(call.callee, call.caller, call);
    const back = await join(t, server, { deviceId: 'phone' });
    await back.ok('user-connected', call.callee.userId);
    assert.equal((await back.next('call:resumed')).callId, call.callId);
    back.userId = call.callee.userId;
    await assertTalking(call.caller, back);
  });
});

describe('a device that came back and calls anew', { concurrency: true }, () => {
  for (const who of ['caller', 'callee']) {
    test(`without having gone on with its call (as the ${who}) supersedes it`, async (t) => {
      const call = await activeCall(t, server, onDevices);
      const { callId } = call;
      const [device, peer] = who === 'caller' ? [call.caller, call.callee] : [call.callee, call.caller];
      await lose(device, peer, call);
      await regain(device, peer, call);

      const placed = await device.ok('call:initiate', { toUserId: peer.userId, callType: 'audio' });
      assert.equal(placed.status, 'pending');
      assert.notEqual(placed.callId, callId);
      assertShape(await peer.next('call:ended'), {
        fromUserId: device.userId,
        duration: Number.isInteger,
        timestamp: isNow,
        callId,
        reason: 'superseded',
      });
      assert.equal((await peer.next('call:incoming')).callId, placed.callId);
      const names = peer.names;
      assert.ok(names.lastIndexOf('call:ended') < names.lastIndexOf('call:incoming'), 'the old call ends before the new rings');
      await device.none('call:ended', { after: [peer] });
      await pickUp(peer, device);
      await assertTalking(device, peer);
    });
  }

  test('while it rang supersedes it too', async (t) => {
    const call = await ringing(t, server, onDevices);
    const { caller, callee, callId } = call;
    await lose(caller, callee, call);
    await regain(caller, callee, call);
    const placed = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assertShape(await callee.next('call:ended'), {
      fromUserId: caller.userId,
      duration: 0,
      timestamp: isNow,
      callId,
      reason: 'superseded',
    });
    assert.equal((await callee.next('call:incoming')).callId, placed.callId);
  });

  test('to someone else: the old peer is told', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee, callId } = call;
    const carol = await join(t, server, { userId: someone('carol') });
    await lose(caller, callee, call);
    await regain(caller, callee, call);
    const placed = await caller.ok('call:initiate', { toUserId: carol.userId, callType: 'audio' });
    assert.ok(isText(placed.callId));
    const ended = await callee.next('call:ended');
    assert.equal(ended.callId, callId);
    assert.equal(ended.reason, 'superseded');
    assert.equal((await carol.next('call:incoming')).callId, placed.callId);
    await callee.nothingElse({ after: [caller] });
  });

  test('after having gone on with its call is in that call', async (t) => {
    const call = await activeCall(t, server, onDevices);
    const { caller, callee } = call;
    const carol = await join(t, server, { userId: someone('carol') });
    await lose(caller, callee, call);
    await regain(caller, callee, call);
    await caller.ok('call:offer', { toUserId: callee.userId, offer: offer('restart') });
    await callee.next('call:offer');
    assertRefused(await caller.ack('call:initiate', { toUserId: carol.userId, callType: 'audio' }), 'CALL_IN_PROGRESS');
    await carol.nothingElse({ after: [caller] });
    await assertTalking(caller, callee);
  });
});
