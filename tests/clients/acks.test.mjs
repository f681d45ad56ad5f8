// The ack of each event, and repeated events.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { activeCall, answer, assertTalking, candidate, offer, pair, pickUp, ringing } from '../support/calls.mjs';
import { assertRefused, assertShape, isIn, isNow, isText, someone } from '../support/check.mjs';
import { join, joinAsBefore } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

describe('acks', { concurrency: true }, () => {
  test('user-connected names the user, also as an object and again', async (t) => {
    const userId = someone('alice');
    for (const payload of [userId, { userId }]) {
      const client = await join(t, server);
      assertShape(await client.ack('user-connected', payload), { ok: true, userId });
      assertShape(await client.ack('user-connected', payload), { ok: true, userId });
    }
    const named = await join(t, server, { userId });
    assertShape(await named.ack('user-connected', userId), { ok: true, userId });
  });

  test('initiate of a call that rings', async (t) => {
    const { caller, callee } = await pair(t, server);
    const placed = await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assertShape(placed, { ok: true, callId: isText, status: 'pending', expiresAt: isIn(30_000) });
    const incoming = await callee.next('call:incoming');
    assert.equal(incoming.callId, placed.callId);
    assert.equal(incoming.expiresAt, placed.expiresAt);
    assert.equal((await caller.next('call:ringing')).callId, placed.callId);
  });

  test('initiate to a busy callee says so in the ack and as the event', async (t) => {
    const { callee, callId } = await activeCall(t, server);
    const carol = await join(t, server, { userId: someone('carol') });
    const placed = await carol.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assertShape(placed, { ok: true, callId: (id) => isText(id) && id !== callId, status: 'missed', reason: 'busy' });
    assert.equal((await carol.next('call:busy')).callId, placed.callId);
  });

  test('offer, answer and candidate', async (t) => {
    const { caller, callee } = await pair(t, server);
    const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
    const toCallee = { toUserId: callee.userId };
    const toCaller = { toUserId: caller.userId };
    assertShape(await caller.ack('call:offer', { ...toCallee, offer: offer() }), { ok: true, callId });
    assertShape(await caller.ack('call:ice-candidate', { ...toCallee, candidate: candidate() }), { ok: true, callId });
    assertShape(await callee.ack('call:ice-candidate', { ...toCaller, candidate: candidate() }), { ok: true, callId });
    assertShape(await callee.ack('call:answer', { ...toCaller, answer: answer() }), { ok: true, callId });
    assertShape(await callee.ack('call:ice-candidate', { ...toCaller, candidate: null }), { ok: true, callId });
  });

  test('every event may name its callId', async (t) => {
    const { caller, callee } = await pair(t, server);
    const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
    const toCallee = { toUserId: callee.userId, callId };
    const toCaller = { toUserId: caller.userId, callId };
    assert.equal((await caller.ok('call:offer', { ...toCallee, offer: offer() })).callId, callId);
    assert.equal((await callee.ok('call:answer', { ...toCaller, answer: answer() })).callId, callId);
    assert.equal((await callee.ok('call:ice-candidate', { ...toCaller, candidate: candidate() })).callId, callId);
    assert.equal((await caller.ok('call:stats', { callId, roundTripMs: 20 })).callId, callId);
    assert.equal((await caller.ok('call:end', toCallee)).callId, callId);
  });

  test('end, reject and busy say how the call ended', async (t) => {
    const ends = [
      { who: 'caller', event: 'call:end', status: 'missed', reason: 'cancelled' },
      { who: 'callee', event: 'call:end', status: 'rejected', reason: 'declined' },
      { who: 'callee', event: 'call:reject', status: 'rejected', reason: 'declined' },
      { who: 'callee', event: 'call:busy', status: 'missed', reason: 'busy' },
    ];
    for (const { who, event, status, reason } of ends) {
      const call = await ringing(t, server);
      const toUserId = (who === 'caller' ? call.callee : call.caller).userId;
      assertShape(await call[who].ack(event, { toUserId }), { ok: true, callId: call.callId, status, reason }, `ack of ${event}`);
    }
    const { caller, callee, callId } = await activeCall(t, server);
    assertShape(await callee.ack('call:end', { toUserId: caller.userId }), { ok: true, callId, status: 'ended', reason: 'completed' });
  });

  test('stats of a live call', async (t) => {
    const { caller, callId } = await activeCall(t, server);
    const stats = { callId, roundTripMs: 31.5, lossPercent: 0.2, jitterMs: 4, candidateType: 'host', iceState: 'connected' };
    assertShape(await caller.ack('call:stats', stats), { ok: true, callId });
    assertShape(await caller.ack('call:stats', { callId }), { ok: true, callId });
  });

  test('ice:servers gives the STUN servers that are set', async (t) => {
    const urls = ['stun:stun1.example.org:3478', 'stun:stun2.example.org:3478'];
    const other = await startServer({ args: ['--stun-urls', urls.join(',')] });
    t.after(() => other.stop());
    const client = await join(t, other, { userId: someone('alice') });
    const given = await client.ack('ice:servers', {});
    assertShape(given, { ok: true, iceServers: Array.isArray, ttl: (seconds) => Number.isInteger(seconds) && seconds > 0 });
    assert.deepEqual(given.iceServers.flatMap((entry) => entry.urls), urls);
    for (const entry of given.iceServers) assert.ok(Array.isArray(entry.urls), JSON.stringify(entry));
    assert.equal((await client.ack('ice:servers')).ok, true, 'the payload may be left out');
  });
});

describe('call:sync', { concurrency: true }, () => {
  const sync = async (client, payload = {}) => {
    const reply = await client.ack('call:sync', payload);
    assertShape(reply, { ok: true, call: () => true });
    return reply.call;
  };

  test('tells the live call in each of its states', async (t) => {
    const { caller, callee } = await pair(t, server);
    assert.equal(await sync(caller), null);
    assert.equal((await caller.ok('call:sync')).call, null, 'the payload may be left out');

    const callerInfo = { name: 'Alice', pic: 'a.png' };
    const placed = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio', callerInfo });
    const always = {
      callId: placed.callId,
      caller: caller.userId,
      receiver: callee.userId,
      callType: 'audio',
      callerInfo,
      createdAt: isNow,
    };
    for (const client of [caller, callee]) {
      assertShape(await sync(client), { ...always, status: 'pending', expiresAt: placed.expiresAt });
    }

    await callee.next('call:incoming');
    await pickUp(callee, caller);
    for (const client of [caller, callee]) {
      assertShape(await sync(client), { ...always, status: 'answered', startedAt: isNow });
    }

    await caller.ok('call:end', { toUserId: callee.userId });
    for (const client of [caller, callee]) {
      assert.equal(await sync(client), null, 'no live call any more');
      assertShape(
        await sync(client, { callId: placed.callId }),
        { ...always, status: 'ended', reason: 'completed', startedAt: isNow, endedAt: isNow },
        'the last state of an ended call',
      );
    }
  });

  test('another device of a party sees the call too; others see nothing', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    const otherDevice = await join(t, server, { userId: caller.userId });
    assert.equal((await sync(otherDevice)).callId, callId);
    assert.equal((await sync(callee, { callId })).callId, callId);

    const stranger = await join(t, server, { userId: someone('mallory') });
    const told = await stranger.ack('call:sync', { callId });
    assert.ok(!told.ok || told.call === null, `a stranger must not see the call: ${JSON.stringify(told)}`);
    const unknown = await stranger.ack('call:sync', { callId: '01890a5d-ac96-774b-bcce-b302099a8057' });
    assert.deepEqual(Object.keys(told), Object.keys(unknown), 'another’s call and no call look the same');
  });
});

describe('repeated events', { concurrency: true }, () => {
  test('end, reject and busy change nothing on a call that has ended', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
    for (const [client, other] of [[caller, callee], [callee, caller]]) {
      for (const event of ['call:end', 'call:reject', 'call:busy']) {
        assertShape(
          await client.ack(event, { toUserId: other.userId, callId }),
          { ok: true, callId, status: 'ended', reason: 'completed' },
          `ack of ${event}`,
        );
        client.emit(event, { toUserId: other.userId, callId });
      }
    }
    await caller.nothingElse({ after: [caller, callee] });
    await callee.nothingElse();
  });

  test('a rejected call stays rejected, whatever follows', async (t) => {
    const { caller, callee, callId } = await ringing(t, server);
    await callee.ok('call:reject', { toUserId: caller.userId, callId });
    await caller.next('call:rejected');
    const ended = { ok: true, callId, status: 'rejected', reason: 'declined' };
    assert.deepEqual(await callee.ack('call:busy', { toUserId: caller.userId, callId }), ended);
    assert.deepEqual(await caller.ack('call:end', { toUserId: callee.userId, callId }), ended);
    await caller.nothingElse({ after: [callee] });
    await callee.nothingElse({ after: [caller] });
  });

  test('an ended call’s end does not touch the next call', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    await caller.ok('call:end', { toUserId: callee.userId });
    const next = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assert.equal((await callee.ok('call:end', { toUserId: caller.userId, callId })).callId, callId);
    assert.equal((await caller.ok('call:sync', {})).call.callId, next.callId);
  });

  test('initiate with the same clientCallId is one call', async (t) => {
    const { caller, callee } = await pair(t, server);
    const request = { toUserId: callee.userId, callType: 'audio', clientCallId: 'attempt-1' };
    const first = await caller.ok('call:initiate', request);
    const again = await caller.ok('call:initiate', request);
    assert.deepEqual(again, first);
    await callee.next('call:incoming');
    await callee.nothingElse({ after: [caller] });

    await pickUp(callee, caller);
    const whileActive = await caller.ok('call:initiate', request);
    assert.equal(whileActive.callId, first.callId);
    assert.equal(whileActive.status, 'answered');
    await assertTalking(caller, callee);

    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
    const afterTheEnd = await caller.ok('call:initiate', request);
    assert.equal(afterTheEnd.callId, first.callId);
    assert.equal(afterTheEnd.status, 'ended');
    await callee.nothingElse({ after: [caller] });

    const another = await caller.ok('call:initiate', { ...request, clientCallId: 'attempt-2' });
    assert.notEqual(another.callId, first.callId);
    await callee.next('call:incoming');
  });

  test('a clientCallId is the caller’s own: another user’s same one is another call', async (t) => {
    const one = await pair(t, server);
    const other = await pair(t, server);
    const clientCallId = someone('attempt');
    const placed = [];
    for (const { caller, callee } of [one, other]) {
      placed.push(await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio', clientCallId }));
      await callee.next('call:incoming');
    }
    assert.notEqual(placed[0].callId, placed[1].callId);
  });

  test('initiate sent twice at once with the same clientCallId rings once', async (t) => {
    const { caller, callee } = await pair(t, server);
    const request = { toUserId: callee.userId, callType: 'video', clientCallId: 'twice' };
    const [first, second] = await Promise.all([caller.ok('call:initiate', request), caller.ok('call:initiate', request)]);
    assert.equal(first.callId, second.callId);
    await callee.next('call:incoming');
    await callee.nothingElse({ after: [caller] });
  });

  test('an error in an ack does not come as an event as well', async (t) => {
    const caller = await join(t, server, { userId: someone('alice') });
    assertRefused(await caller.ack('call:initiate', { toUserId: someone('nobody'), callType: 'audio' }), 'RECIPIENT_OFFLINE');
    await caller.none('call:error');
    const old = await joinAsBefore(t, server, someone('old'));
    assertRefused(await old.ack('call:offer', {}), 'INVALID_PAYLOAD');
    await old.none('call:error');
  });
});
