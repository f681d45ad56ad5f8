// One user on several devices: all ring, one answers, the others are notified.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import {
  activeCall, answer, assertTalking, candidate, candidates, dial, offer, pair, pickUp, ringing,
} from '../support/calls.mjs';
import { assertRefused, assertShape, isNow, someone } from '../support/check.mjs';
import { connect, join, settled } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

/** Alice calls Bob, who has a phone, a tablet and a browser tab without a `deviceId`. No event has been read yet. */
async function callToThreeDevices(t) {
  const caller = await join(t, server, { userId: someone('alice'), deviceId: 'laptop' });
  const userId = someone('bob');
  const phone = await join(t, server, { userId, deviceId: 'phone' });
  const tablet = await join(t, server, { userId, deviceId: 'tablet' });
  const tab = await join(t, server, { userId });
  const { callId } = await caller.ok('call:initiate', { toUserId: userId, callType: 'video' });
  return { caller, userId, callId, phone, tablet, tab, devices: [phone, tablet, tab] };
}

const toldElsewhere = (caller, callId, reason) => ({
  fromUserId: caller.userId,
  duration: 0,
  timestamp: isNow,
  callId,
  reason,
});

describe('several devices of the callee', { concurrency: true }, () => {
  test('all ring, and the caller learns how many', async (t) => {
    const { caller, callId, devices } = await callToThreeDevices(t);
    for (const device of devices) assert.equal((await device.next('call:incoming')).callId, callId);
    assert.equal((await caller.next('call:ringing')).devices, 3);
  });

  test('the caller’s other devices do not ring', async (t) => {
    const { caller, callee } = await pair(t, server);
    const second = await join(t, server, { userId: caller.userId, deviceId: 'second' });
    await dial(caller, callee);
    await pickUp(callee, caller);
    await assertTalking(caller, callee);
    await second.nothingElse({ after: [caller, callee] });
  });

  test('the first answer wins; the others are told', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    await tablet.ok('call:answer', { toUserId: caller.userId, answer: answer('tablet') });
    assert.deepEqual((await caller.next('call:answer')).answer, answer('tablet'));
    for (const device of [phone, tab]) {
      await device.next('call:incoming');
      assertShape(await device.next('call:ended'), toldElsewhere(caller, callId, 'answered_elsewhere'));
      await device.nothingElse();
    }
    await tablet.none('call:ended');
    await assertTalking(caller, tablet);
  });

  test('a reject declines for all', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    await phone.ok('call:reject', { toUserId: caller.userId, reason: 'Later' });
    assert.equal((await caller.next('call:rejected')).reason, 'Later');
    for (const device of [tablet, tab]) {
      assertShape(await device.next('call:ended'), toldElsewhere(caller, callId, 'declined_elsewhere'));
    }
    await phone.none('call:ended');
  });

  test('an end by a ringing device declines for all', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    await tab.ok('call:end', { toUserId: caller.userId });
    assert.equal((await caller.next('call:ended')).reason, 'declined');
    for (const device of [phone, tablet]) {
      assertShape(await device.next('call:ended'), toldElsewhere(caller, callId, 'declined_elsewhere'));
    }
    await tab.none('call:ended');
  });

  test('a busy device silences itself alone; the others ring on', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    for (let time = 0; time < 2; time += 1) {
      const { status, ...rest } = await phone.ok('call:busy', { toUserId: caller.userId });
      assert.deepEqual([status, rest.callId], ['pending', callId]);
    }
    // The phone no longer rings: it can neither answer nor decline, and gets no more events of the call.
    assertRefused(await phone.ack('call:answer', { toUserId: caller.userId, answer: answer('late') }), 'NO_ACTIVE_CALL');
    assertRefused(await phone.ack('call:reject', { callId }), 'NO_ACTIVE_CALL');
    await caller.ok('call:offer', { toUserId: tablet.userId, offer: offer() });
    for (const device of [tablet, tab]) await device.next('call:offer');
    await phone.next('call:incoming');
    await phone.nothingElse({ after: [caller] });
    await caller.next('call:ringing');
    await caller.nothingElse({ after: [phone, tablet] });
    await tablet.ok('call:answer', { toUserId: caller.userId, answer: answer('tablet') });
    await caller.next('call:answer');
    assertShape(await tab.next('call:ended'), toldElsewhere(caller, callId, 'answered_elsewhere'));
    await phone.nothingElse({ after: [caller, tablet] });
    await assertTalking(caller, tablet);
  });

  test('the caller hears busy when the last ringing device is', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    for (const device of [tab, phone]) {
      assert.equal((await device.ok('call:busy', { callId })).status, 'pending');
      await caller.none('call:busy');
    }
    const { status, reason } = await tablet.ok('call:busy', { toUserId: caller.userId });
    assert.deepEqual([status, reason], ['missed', 'busy']);
    assert.equal((await caller.next('call:busy')).callId, callId);
    for (const device of [phone, tablet, tab]) {
      await device.next('call:incoming');
      await device.nothingElse({ after: [caller] });
    }
  });

  test('a device that said busy does not ring again when it is back', async (t) => {
    const { caller, callId, phone, tablet, tab } = await callToThreeDevices(t);
    await phone.ok('call:busy', { toUserId: caller.userId });
    await phone.drop();
    const again = await join(t, server, { userId: tablet.userId, deviceId: 'phone' });
    await again.fence();
    await again.nothingElse({ after: [tablet] });
    for (const device of [tablet, tab]) await device.ok('call:busy', { callId });
    await caller.next('call:busy');
    await again.nothingElse({ after: [caller] });
  });

  test('a call that nobody answers was busy if a device was', async (t) => {
    const hasty = await startServer({ args: ['--ring-timeout', '600ms'] });
    t.after(() => hasty.stop());
    const caller = await join(t, hasty, { userId: someone('alice') });
    const userId = someone('bob');
    const [phone, tablet] = [await join(t, hasty, { userId, deviceId: 'phone' }), await join(t, hasty, { userId })];
    await caller.ok('call:initiate', { toUserId: userId, callType: 'audio' });
    await phone.ok('call:busy', { toUserId: caller.userId });
    await caller.next('call:busy');
    assert.equal((await tablet.next('call:ended')).reason, 'busy');
    await phone.next('call:incoming');
    await phone.nothingElse({ after: [caller, tablet] });
  });

  test('end, reject and busy may name the call by its id alone', async (t) => {
    for (const [who, event] of [['caller', 'call:end'], ['callee', 'call:reject'], ['callee', 'call:busy'], ['callee', 'call:end']]) {
      const { caller, callee } = await pair(t, server);
      const call = { caller, callee };
      const { callId } = await dial(caller, callee);
      const mallory = await join(t, server, { userId: someone('mallory') });
      assertRefused(await mallory.ack(event, { callId }), 'NO_ACTIVE_CALL');
      assert.ok((await call[who].ok(event, { callId })).reason);
      await call[who === 'caller' ? 'callee' : 'caller'].next(event === 'call:end' ? 'call:ended' : event === 'call:busy' ? 'call:busy' : 'call:rejected');
    }
  });

  test('a cancel stops the ringing on all', async (t) => {
    const { caller, userId, callId, devices } = await callToThreeDevices(t);
    await caller.ok('call:end', { toUserId: userId });
    for (const device of devices) {
      assertShape(await device.next('call:ended'), toldElsewhere(caller, callId, 'cancelled'));
    }
    await caller.none('call:ended');
  });

  test('two answers at the same instant: exactly one wins', async (t) => {
    const caller = await join(t, server, { userId: someone('alice') });
    const userId = someone('bob');
    const phone = await join(t, server, { userId, deviceId: 'phone' });
    const tablet = await join(t, server, { userId, deviceId: 'tablet' });
    for (let round = 0; round < 20; round += 1) {
      const { callId } = await caller.ok('call:initiate', { toUserId: userId, callType: 'audio' });
      await phone.next('call:incoming');
      await tablet.next('call:incoming');
      const replies = await Promise.all(
        [phone, tablet].map((device) => device.ack('call:answer', { toUserId: caller.userId, answer: answer(device.socket.id) })),
      );
      const won = replies.findIndex((reply) => reply.ok);
      assert.ok(won >= 0, JSON.stringify(replies));
      const [winner, loser] = won === 0 ? [phone, tablet] : [tablet, phone];
      assertRefused(replies[1 - won], 'ALREADY_ANSWERED', { callId });
      assert.deepEqual((await caller.next('call:answer')).answer, answer(winner.socket.id));
      assert.equal((await loser.next('call:ended')).reason, 'answered_elsewhere');
      await caller.next('call:ringing');
      await caller.nothingElse({ after: [phone, tablet] });
      await winner.ok('call:end', { toUserId: caller.userId });
      await caller.next('call:ended');
      await loser.nothingElse();
    }
  });

  test('an answer and a cancel at the same instant: both sides see the same outcome', async (t) => {
    const { caller, callee } = await pair(t, server);
    for (let round = 0; round < 20; round += 1) {
      const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
      // On another node the event may arrive after the caller's ack.
      await callee.next('call:incoming');
      const [answered, ended] = await Promise.all([
        callee.ack('call:answer', { toUserId: caller.userId, answer: answer(), callId }),
        caller.ack('call:end', { toUserId: callee.userId, callId }),
      ]);
      assert.equal(ended.ok, true, JSON.stringify(ended));
      assert.equal(ended.reason, answered.ok ? 'completed' : 'cancelled');
      assert.equal((await callee.next('call:ended')).reason, ended.reason);
      if (!answered.ok) assertRefused(answered, 'NO_ACTIVE_CALL');
      await caller.next('call:ringing');
      // A winning answer may still reach the caller, or find that the caller has left.
      await settled(callee, caller);
      if (answered.ok) caller.forget();
      await caller.nothingElse();
      await callee.nothingElse();
    }
  });

  test('before the answer all devices hear the caller; after it only the bound one', async (t) => {
    const { caller, userId, phone, tablet, tab, devices } = await callToThreeDevices(t);
    await caller.ok('call:offer', { toUserId: userId, offer: offer() });
    await caller.ok('call:ice-candidate', { toUserId: userId, candidate: candidate(1) });
    for (const device of devices) {
      assert.deepEqual((await device.next('call:offer')).offer, offer());
      assert.deepEqual((await device.next('call:ice-candidate')).candidate, candidate(1));
    }
    await phone.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    for (const device of [tablet, tab]) {
      await device.next('call:ended');
      device.forget();
    }
    await caller.ok('call:ice-candidate', { toUserId: userId, candidate: candidate(2) });
    await caller.ok('call:offer', { toUserId: userId, offer: offer('restart') });
    assert.deepEqual((await phone.next('call:ice-candidate')).candidate, candidate(2));
    assert.deepEqual((await phone.next('call:offer')).offer, offer('restart'));
    for (const device of [tablet, tab]) await device.nothingElse({ after: [caller] });
  });

  test('candidates of the callee wait for its answer, and the losers’ are never heard', async (t) => {
    const { caller, phone, tablet } = await callToThreeDevices(t);
    const toUserId = caller.userId;
    for (let number = 1; number <= 3; number += 1) {
      await phone.ok('call:ice-candidate', { toUserId, candidate: candidate(number) });
      await tablet.ok('call:ice-candidate', { toUserId, candidate: candidate(100 + number) });
    }
    await caller.none('call:ice-candidate', { after: [phone, tablet] });
    await phone.ok('call:answer', { toUserId, answer: answer() });
    await phone.ok('call:ice-candidate', { toUserId, candidate: candidate(4) });
    const heard = await caller.nextFew('call:ice-candidate', 4);
    assert.deepEqual(heard.map((event) => event.candidate), candidates(4));
    await caller.none('call:ice-candidate', { after: [tablet, phone] });
  });

  test('two callers at once: one rings, the other is told busy', async (t) => {
    const callee = await join(t, server, { userId: someone('bob') });
    const callers = await Promise.all(['alice', 'carol', 'dave'].map((name) => join(t, server, { userId: someone(name) })));
    const replies = await Promise.all(
      callers.map((caller) => caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' })),
    );
    assert.deepEqual(replies.map((reply) => reply.status).sort(), ['missed', 'missed', 'pending']);
    await callee.next('call:incoming');
    await callee.nothingElse({ after: callers });
  });
});

describe('a device that joins while it rings', { concurrency: true }, () => {
  test('gets the call, then the offer and the candidates so far, then what follows', async (t) => {
    const callerInfo = { name: 'Alice' };
    const { caller, callee } = await pair(t, server);
    const placed = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video', callerInfo });
    await caller.ok('call:offer', { toUserId: callee.userId, offer: offer() });
    for (const one of candidates(5)) await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: one });

    const late = await join(t, server, { userId: callee.userId, deviceId: 'late' });
    await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: candidate(6) });
    await late.nextFew('call:ice-candidate', 6);
    await settled(caller, late);
    assert.deepEqual(late.names, ['call:incoming', 'call:offer', ...Array(6).fill('call:ice-candidate')]);
    assertShape(late.log[0].payload, {
      fromUserId: caller.userId,
      callType: 'video',
      callerInfo,
      timestamp: isNow,
      callId: placed.callId,
      expiresAt: placed.expiresAt,
    });
    assert.deepEqual(late.log[1].payload.offer, offer());
    assert.deepEqual(late.log.slice(2).map((entry) => entry.payload.candidate), candidates(6));

    await late.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    assert.equal((await callee.next('call:ended')).reason, 'answered_elsewhere');
    await assertTalking(caller, late);
  });

  test('while the caller keeps sending: nothing lost, nothing twice, nothing out of order', async (t) => {
    const { caller, callee } = await ringing(t, server);
    const sent = candidates(60);
    const joining = [];
    for (const [index, one] of sent.entries()) {
      caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one });
      if (index % 10 === 0) {
        joining.push(join(t, server, { userId: callee.userId, deviceId: `late-${index}` }));
        await caller.fence();
      }
    }
    for (const late of await Promise.all(joining)) {
      await settled(caller, late);
      assert.deepEqual(late.names.slice(0, 2), ['call:incoming', 'call:offer']);
      assert.deepEqual(late.log.slice(2).map(({ payload }) => payload.candidate), sent);
    }
  });

  test('at the very moment when the call is placed: it rings, once', async (t) => {
    const caller = await join(t, server, { userId: someone('alice') });
    for (let round = 0; round < 200; round += 1) {
      const userId = someone('bob');
      const callee = connect(t, server, { auth: { userId } });
      callee.userId = userId;
      let placed;
      do {
        placed = await caller.ack('call:initiate', { toUserId: userId, callType: 'audio' });
      } while (!placed.ok);
      assert.equal((await callee.next('call:incoming')).callId, placed.callId, `round ${round}`);
      await caller.ok('call:end', { toUserId: userId });
      await callee.next('call:ended');
      await callee.nothingElse();
      callee.close();
    }
  });

  test('a callee whose last device left and came back rings again', async (t) => {
    const { caller, callee, callId } = await ringing(t, server, { callee: { deviceId: 'phone' } });
    callee.close();
    await caller.none('call:ended', { after: [caller] });
    const back = await join(t, server, { userId: callee.userId, deviceId: 'phone' });
    assert.equal((await back.next('call:incoming')).callId, callId);
    assert.deepEqual((await back.next('call:offer')).offer, offer());
    await pickUp(back, caller);
    await assertTalking(caller, back);
  });

  test('joins with user-connected instead of the auth object', async (t) => {
    const { callee, callId } = await ringing(t, server);
    const late = await join(t, server);
    await late.ok('user-connected', callee.userId);
    assert.equal((await late.next('call:incoming')).callId, callId);
    await late.next('call:offer');
    await late.ok('user-connected', callee.userId);
    await late.nothingElse();
  });

  test('the caller’s own new device does not ring', async (t) => {
    const { caller } = await ringing(t, server);
    const late = await join(t, server, { userId: caller.userId, deviceId: 'late' });
    await late.nothingElse();
  });

  test('a device that joins after the answer gets nothing', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const late = await join(t, server, { userId: callee.userId, deviceId: 'late' });
    await assertTalking(caller, callee);
    await late.nothingElse({ after: [caller, callee] });
  });
});

describe('relays while the call is active', { concurrency: true }, () => {
  test('either side renegotiates', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    for (const [one, other] of [[caller, callee], [callee, caller], [caller, callee]]) {
      await one.ok('call:offer', { toUserId: other.userId, offer: offer('again') });
      assertShape(await other.next('call:offer'), { fromUserId: one.userId, offer: offer('again'), timestamp: isNow, callId });
      await other.ok('call:answer', { toUserId: one.userId, answer: answer('again') });
      assertShape(await one.next('call:answer'), { fromUserId: other.userId, answer: answer('again'), timestamp: isNow, callId });
    }
    await caller.nothingElse({ after: [callee] });
    await callee.nothingElse({ after: [caller] });
  });

  test('the end of candidates passes, as null and as an empty string', async (t) => {
    const { caller, callee, callId } = await activeCall(t, server);
    const ends = [null, '', { candidate: '', sdpMid: '0', sdpMLineIndex: 0 }, { candidate: '', sdpMid: null, sdpMLineIndex: null }];
    for (const [one, other] of [[caller, callee], [callee, caller]]) {
      for (const end of ends) {
        one.emit('call:ice-candidate', { toUserId: other.userId, candidate: end });
        assertShape(await other.next('call:ice-candidate'), { fromUserId: one.userId, candidate: end, callId });
      }
    }
    await caller.nothingElse({ after: [callee] });
  });

  test('fields that the server does not know pass unchanged', async (t) => {
    const { caller, callee } = await pair(t, server);
    const extra = {
      'x-number': 12345678901234567890,
      precise: 0.1,
      list: [1, [2, [{ three: null }]], true],
      text: 'Grüße \u2028 💙 \\ " / \u0007',
      __proto: { nested: {} },
    };
    const callerInfo = { name: 'Alice', verified: true, ...extra };
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio', callerInfo, unknown: 'ignored' });
    const incoming = await callee.next('call:incoming');
    assert.deepEqual(incoming.callerInfo, callerInfo);
    assert.ok(!('unknown' in incoming));

    const richOffer = { ...offer(), ...extra };
    await caller.ok('call:offer', { toUserId: callee.userId, offer: richOffer });
    assert.deepEqual((await callee.next('call:offer')).offer, richOffer);
    const richAnswer = { ...answer(), ...extra };
    await callee.ok('call:answer', { toUserId: caller.userId, answer: richAnswer });
    assert.deepEqual((await caller.next('call:answer')).answer, richAnswer);
    const richCandidate = { ...candidate(), ...extra };
    await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: richCandidate });
    assert.deepEqual((await callee.next('call:ice-candidate')).candidate, richCandidate);
  });

  test('a call that lasts too long is ended for both', async (t) => {
    const strict = await startServer({ args: ['--max-call-duration', '1s'] });
    t.after(() => strict.stop());
    const { caller, callee, callId } = await activeCall(t, strict);
    for (const [told, other] of [[caller, callee], [callee, caller]]) {
      const ended = await told.next('call:ended');
      // Measured from the answer, which came a moment after the call was placed.
      assert.ok(ended.duration <= 1, `${ended.duration} s`);
      assertShape(ended, {
        fromUserId: other.userId,
        duration: ended.duration,
        timestamp: isNow,
        callId,
        reason: 'max_duration',
      });
    }
  });
});
