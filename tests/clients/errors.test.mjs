// Every `call:error` type of an open server, in the ack and as the event.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { activeCall, answer, assertTalking, candidate, offer, pair, ringing } from '../support/calls.mjs';
import { assertError, assertRefused, assertShape, isText, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

/** The refusal must be the same with an ack and, as `call:error`, without one. */
async function refused(client, event, payload, type, details = {}) {
  assertRefused(await client.ack(event, payload), type, { event, ...details });
  client.emit(event, payload);
  assertError(await client.next('call:error'), type, { event, ...details });
  await client.none('call:error');
}

describe('error types', { concurrency: true }, () => {
  test('RECIPIENT_OFFLINE', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const toUserId = someone('nobody');
    const request = { toUserId, callType: 'video' };
    const reply = await alice.ack('call:initiate', request);
    assertShape(reply.error, {
      type: 'RECIPIENT_OFFLINE',
      message: 'User is currently offline',
      event: 'call:initiate',
      toUserId,
      callId: isText,
    });
    await refused(alice, 'call:initiate', request, 'RECIPIENT_OFFLINE', { toUserId, message: 'User is currently offline' });
  });

  test('RECIPIENT_OFFLINE once the callee has left', async (t) => {
    const { caller, callee } = await pair(t, server);
    callee.close();
    const request = { toUserId: callee.userId, callType: 'video' };
    // The server needs a moment to notice that the callee has gone; until then the call rings.
    let reply = await caller.ack('call:initiate', request);
    if (reply.ok) {
      await caller.ok('call:end', { toUserId: callee.userId });
      reply = await caller.ack('call:initiate', request);
    }
    assertRefused(reply, 'RECIPIENT_OFFLINE');
  });

  test('UNAUTHENTICATED before the socket has said who it is', async (t) => {
    const toUserId = someone('bob');
    const events = {
      'call:initiate': { toUserId, callType: 'audio' },
      'call:offer': { toUserId, offer: offer() },
      'call:answer': { toUserId, answer: answer() },
      'call:ice-candidate': { toUserId, candidate: candidate() },
      'call:reject': { toUserId },
      'call:busy': { toUserId },
      'call:end': { toUserId },
      'call:sync': {},
      'call:stats': { callId: '01890a5d-ac96-774b-bcce-b302099a8057' },
      'presence:subscribe': { userIds: [toUserId] },
      'presence:unsubscribe': { userIds: [toUserId] },
      'ice:servers': {},
    };
    const nameless = await join(t, server);
    for (const [event, payload] of Object.entries(events)) await refused(nameless, event, payload, 'UNAUTHENTICATED');
    await nameless.ok('user-connected', someone('late'));
    await nameless.ok('ice:servers', {});
  });

  test('FORBIDDEN: a socket stays with its user', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    await refused(alice, 'user-connected', someone('bob'), 'FORBIDDEN');
    await refused(alice, 'user-connected', { userId: someone('bob') }, 'FORBIDDEN');
    await alice.ok('user-connected', alice.userId);

    const named = await join(t, server);
    const userId = someone('carol');
    await named.ok('user-connected', userId);
    await refused(named, 'user-connected', someone('bob'), 'FORBIDDEN');
  });

  test('FORBIDDEN: there is no token to refresh', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    await refused(alice, 'auth:refresh', { token: 'a.b.c' }, 'FORBIDDEN');
  });

  test('INVALID_PAYLOAD names the field', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    await refused(alice, 'call:initiate', { callType: 'audio' }, 'INVALID_PAYLOAD', { mentions: 'toUserId' });
    await refused(alice, 'call:initiate', { toUserId: 'bob', callType: 'fax' }, 'INVALID_PAYLOAD', { mentions: 'callType' });
  });

  test('PAYLOAD_TOO_LARGE names the limit', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const toUserId = callee.userId;
    const tooLarge = [
      ['call:offer', { toUserId, offer: { type: 'offer', sdp: 'x'.repeat(64 * 1024 + 1) } }, /64 ?KiB|65,?536/],
      ['call:answer', { toUserId, answer: { type: 'answer', sdp: 'é'.repeat(32 * 1024 + 1) } }, /64 ?KiB|65,?536/],
      ['call:ice-candidate', { toUserId, candidate: { ...candidate(), candidate: 'x'.repeat(4_097) } }, /4 ?KiB|4,?096/],
    ];
    for (const [event, payload, limit] of tooLarge) {
      await refused(caller, event, payload, 'PAYLOAD_TOO_LARGE');
      assert.match((await caller.ack(event, payload)).error.message, limit);
    }
    const dave = await join(t, server, { userId: someone('dave') });
    const wordy = { toUserId: someone('erin'), callType: 'audio', callerInfo: { name: 'x'.repeat(16_385) } };
    await refused(dave, 'call:initiate', wordy, 'PAYLOAD_TOO_LARGE');
    assert.match((await dave.ack('call:initiate', wordy)).error.message, /16,?384.*URL/);
    const longId = { toUserId: someone('erin'), callType: 'audio', clientCallId: 'x'.repeat(129) };
    await refused(dave, 'call:initiate', longId, 'PAYLOAD_TOO_LARGE', { mentions: ['clientCallId', '128'] });
    await assertTalking(caller, callee);
  });

  test('what is just within the limits passes', async (t) => {
    const filled = (object, field, bytes) => {
      const rest = Buffer.byteLength(JSON.stringify({ ...object, [field]: '' }));
      return { ...object, [field]: 'x'.repeat(bytes - rest) };
    };
    const { caller, callee } = await pair(t, server);
    const callerInfo = filled({}, 'name', 16_384);
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio', callerInfo });
    assert.deepEqual((await callee.next('call:incoming')).callerInfo, callerInfo);

    const largeOffer = { type: 'offer', sdp: 'é'.repeat(32 * 1024) };
    await caller.ok('call:offer', { toUserId: callee.userId, offer: largeOffer });
    assert.deepEqual((await callee.next('call:offer')).offer, largeOffer);

    const largeCandidate = filled({ sdpMid: '0', sdpMLineIndex: 0 }, 'candidate', 4_096);
    await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: largeCandidate });
    assert.deepEqual((await callee.next('call:ice-candidate')).candidate, largeCandidate);
  });

  test('NO_ACTIVE_CALL without any call', async (t) => {
    const { caller: alice, callee: bob } = await pair(t, server);
    const toUserId = bob.userId;
    await refused(alice, 'call:offer', { toUserId, offer: offer() }, 'NO_ACTIVE_CALL');
    await refused(alice, 'call:answer', { toUserId, answer: answer() }, 'NO_ACTIVE_CALL');
    await refused(alice, 'call:ice-candidate', { toUserId, candidate: candidate() }, 'NO_ACTIVE_CALL');
    for (const event of ['call:end', 'call:reject', 'call:busy']) {
      await refused(alice, event, { toUserId }, 'NO_ACTIVE_CALL');
    }
    await refused(alice, 'call:stats', { callId: '01890a5d-ac96-774b-bcce-b302099a8057' }, 'NO_ACTIVE_CALL');
    await bob.nothingElse({ after: [alice] });
  });

  test('NO_ACTIVE_CALL for someone who is in no call with that user', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    const mallory = await join(t, server, { userId: someone('mallory') });
    for (const toUserId of [caller.userId, callee.userId]) {
      for (const naming of [{ toUserId }, { toUserId, callId }]) {
        await refused(mallory, 'call:offer', { ...naming, offer: offer() }, 'NO_ACTIVE_CALL');
        await refused(mallory, 'call:answer', { ...naming, answer: answer() }, 'NO_ACTIVE_CALL');
        await refused(mallory, 'call:ice-candidate', { ...naming, candidate: null }, 'NO_ACTIVE_CALL');
        for (const event of ['call:end', 'call:reject', 'call:busy']) await refused(mallory, event, naming, 'NO_ACTIVE_CALL');
      }
    }
    await refused(mallory, 'call:stats', { callId }, 'NO_ACTIVE_CALL');
    await caller.nothingElse({ after: [mallory] });
    await callee.nothingElse();
    await assertTalking(caller, callee);
  });

  test('NO_ACTIVE_CALL for a device of a party that is not the bound one', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    const second = await join(t, server, { userId: caller.userId, deviceId: 'second' });
    const toUserId = callee.userId;
    await refused(second, 'call:offer', { toUserId, offer: offer() }, 'NO_ACTIVE_CALL');
    await refused(second, 'call:ice-candidate', { toUserId, candidate: candidate() }, 'NO_ACTIVE_CALL');
    await refused(second, 'call:end', { toUserId }, 'NO_ACTIVE_CALL');
    await refused(second, 'call:stats', { callId }, 'NO_ACTIVE_CALL');
    await callee.nothingElse({ after: [second] });
    await assertTalking(caller, callee);
  });

  test('only the caller’s device may offer while it rings, only the callee may answer', async (t) => {
    const { caller, callee } = await ringing(t, server);
    assertRefused(await callee.ack('call:offer', { toUserId: caller.userId, offer: offer() }), 'NO_ACTIVE_CALL');
    assertRefused(await caller.ack('call:answer', { toUserId: callee.userId, answer: answer() }), 'NO_ACTIVE_CALL');
    assertRefused(await caller.ack('call:reject', { toUserId: callee.userId }), 'NO_ACTIVE_CALL');
    assertRefused(await caller.ack('call:busy', { toUserId: callee.userId }), 'NO_ACTIVE_CALL');
    await caller.nothingElse({ after: [callee] });
    await callee.nothingElse();
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  });

  test('ALREADY_ANSWERED', async (t) => {
    const { caller, callee } = await ringing(t, server);
    const tablet = await join(t, server, { userId: callee.userId, deviceId: 'tablet' });
    await tablet.next('call:incoming');
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await refused(tablet, 'call:answer', { toUserId: caller.userId, answer: answer('late') }, 'ALREADY_ANSWERED');
    await caller.next('call:answer');
    await caller.nothingElse({ after: [tablet] });
  });

  test('CALL_IN_PROGRESS: the caller is in a call, on this or another device', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const carol = await join(t, server, { userId: someone('carol') });
    const request = { toUserId: carol.userId, callType: 'audio' };
    const otherDevice = await join(t, server, { userId: callee.userId, deviceId: 'other' });
    for (const device of [caller, callee, otherDevice]) await refused(device, 'call:initiate', request, 'CALL_IN_PROGRESS');
    await refused(caller, 'call:initiate', { toUserId: callee.userId, callType: 'audio' }, 'CALL_IN_PROGRESS');
    await carol.nothingElse({ after: [caller, callee] });
    await assertTalking(caller, callee);
  });

  test('CALL_IN_PROGRESS while it rings', async (t) => {
    const { caller, callee } = await ringing(t, server);
    const carol = await join(t, server, { userId: someone('carol') });
    const request = { toUserId: carol.userId, callType: 'audio' };
    for (const device of [caller, callee]) await refused(device, 'call:initiate', request, 'CALL_IN_PROGRESS');
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await carol.nothingElse({ after: [caller, callee] });
  });

  test('GLARE: both dialled each other', async (t) => {
    const { caller, callee, callId } = await ringing(t, server);
    await refused(callee, 'call:initiate', { toUserId: caller.userId, callType: 'video' }, 'GLARE', { callId });
    await caller.nothingElse({ after: [callee] });
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    assert.equal((await caller.next('call:answer')).callId, callId);
  });

  test('GLARE at the same instant: one call survives and both know it', async (t) => {
    const { caller: alice, callee: bob } = await pair(t, server);
    for (let round = 0; round < 20; round += 1) {
      const replies = await Promise.all([
        alice.ack('call:initiate', { toUserId: bob.userId, callType: 'video' }),
        bob.ack('call:initiate', { toUserId: alice.userId, callType: 'video' }),
      ]);
      const won = replies.findIndex((reply) => reply.ok);
      assert.ok(won >= 0, `one must ring: ${JSON.stringify(replies)}`);
      const { callId } = replies[won];
      assertRefused(replies[1 - won], 'GLARE', { callId });
      const [caller, callee] = won === 0 ? [alice, bob] : [bob, alice];
      assert.equal((await callee.next('call:incoming')).callId, callId);
      await caller.next('call:ringing');
      await caller.nothingElse({ after: [callee] });
      await caller.ok('call:end', { toUserId: callee.userId });
      await callee.next('call:ended');
    }
  });

  test('SELF_CALL', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const tablet = await join(t, server, { userId: alice.userId });
    await refused(alice, 'call:initiate', { toUserId: alice.userId, callType: 'audio' }, 'SELF_CALL');
    await tablet.nothingElse({ after: [alice] });
  });
});

describe('joining', { concurrency: true }, () => {
  test('a bad auth object is refused in words', async (t) => {
    const wrong = [
      { userId: 1.5 },
      { userId: '' },
      { userId: 'x'.repeat(129) },
      { userId: 'line\nbreak' },
      { userId: 'ok', deviceId: 'no spaces' },
      { userId: 'ok', deviceId: 'x'.repeat(65) },
      { userId: 'ok', deviceId: '' },
      { userId: 'ok', deviceId: 7 },
    ];
    for (const auth of wrong) {
      const client = connect(t, server, { auth });
      const message = await client.next('connect_error');
      assert.match(message, /^INVALID_PAYLOAD: ./, JSON.stringify(auth));
      const field = 'deviceId' in auth ? 'deviceId' : 'userId';
      assert.ok(message.includes(field), `should name ${field}: ${message}`);
    }
  });

  test('the longest and strangest names that are allowed', async (t) => {
    const { caller, callee } = await pair(t, server, {
      caller: { userId: someone('é').padEnd(64, 'é').replace(/[a-f0-9-]/g, 'ü'), deviceId: `${'a'.repeat(60)}.A_-` },
      callee: { userId: someone('💙 "quoted" \\ <b>').padEnd(100, '.') },
    });
    assert.equal(Buffer.byteLength(caller.userId), 128);
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assert.equal((await callee.next('call:incoming')).fromUserId, caller.userId);
  });

  test('an auth object without a userId, or none at all, waits for user-connected', async (t) => {
    for (const auth of [undefined, {}, { deviceId: 'd1' }, { token: 'ignored', extra: { field: 1 } }]) {
      const client = connect(t, server, { auth });
      await client.connected();
      assertRefused(await client.ack('call:sync', {}), 'UNAUTHENTICATED');
      await client.ok('user-connected', someone('alice'));
      assert.equal((await client.ok('call:sync', {})).call, null);
    }
  });

  test('without an identity the server disconnects the socket after 10 s', async (t) => {
    const began = Date.now();
    const nameless = connect(t, server);
    await nameless.connected();
    const named = await join(t, server);
    await named.ok('user-connected', someone('bob'));
    const reason = await nameless.next('disconnect', undefined, 15_000);
    const took = Date.now() - began;
    assert.equal(reason, 'io server disconnect');
    assert.ok(took > 9_000 && took < 14_000, `after ${took} ms`);
    await named.fence();
    assert.ok(named.socket.connected);
  });
});
