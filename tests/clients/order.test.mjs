// Messages of one socket arrive complete and in order. A socket that exceeds the documented bound is closed, and no
// other client notices.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { held, startBackend } from '../support/backend.mjs';
import { activeCall, answer, assertTalking, candidate, candidates, offer, pair, ringing } from '../support/calls.mjs';
import { someone, within } from '../support/check.mjs';
import { join, joinAsBefore } from '../support/client.mjs';
import { eventFrame, rawSocket } from '../support/raw.mjs';
import { startServer } from '../support/server.mjs';

const BURST = 500;

const server = await startServer();
after(() => server.stop());

const heard = async (client, count = BURST) =>
  (await client.nextFew('call:ice-candidate', count)).map((event) => event.candidate);

/** Sends a burst of messages without acks from one device to the other. */
function burst(from, to, sent = candidates(BURST)) {
  for (const one of sent) from.emit('call:ice-candidate', { toUserId: to.userId, candidate: one });
}

describe('order', { concurrency: 2 }, () => {
  const transports = { websocket: ['websocket'], polling: ['polling'] };
  for (const [name, on] of Object.entries(transports)) {
    test(`a burst over ${name}`, async (t) => {
      const parties = { caller: { transports: on }, callee: { transports: on } };
      const { caller, callee } = await activeCall(t, server, parties);
      burst(caller, callee);
      assert.deepEqual(await heard(callee), candidates(BURST));
      await callee.nothingElse({ after: [caller] });
      await caller.nothingElse();
    });
  }

  test('bursts both ways at once', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    burst(caller, callee);
    burst(callee, caller);
    const both = await Promise.all([heard(callee), heard(caller)]);
    assert.deepEqual(both, [candidates(BURST), candidates(BURST)]);
  });

  test('a burst of all kinds keeps its order across kinds', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const toUserId = callee.userId;
    const kinds = ['call:offer', 'call:ice-candidate', 'call:answer', 'call:ice-candidate', 'call:ice-candidate'];
    const sent = Array.from({ length: BURST }, (_, index) => [kinds[index % kinds.length], String(index)]);
    const before = callee.log.length;
    for (const [event, label] of sent) {
      if (event === 'call:offer') caller.emit(event, { toUserId, offer: offer(label) });
      else if (event === 'call:answer') caller.emit(event, { toUserId, answer: answer(label) });
      else caller.emit(event, { toUserId, candidate: { ...candidate(), label } });
    }
    await caller.fence();
    await callee.fence();
    const came = callee.log.slice(before).map(({ event, payload }) => [
      event,
      payload.candidate?.label ?? (payload.offer ?? payload.answer).sdp.match(/s=(\d+)/)[1],
    ]);
    assert.deepEqual(came, sent);
  });

  test('acks come in order too', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const acked = [];
    const replies = candidates(BURST).map((one, index) =>
      caller.ack('call:ice-candidate', { toUserId: callee.userId, candidate: one }).then((reply) => {
        acked.push(index);
        return reply;
      }),
    );
    for (const reply of await Promise.all(replies)) assert.equal(reply.ok, true, JSON.stringify(reply));
    assert.deepEqual(acked, candidates(BURST).map((_, index) => index));
    assert.deepEqual(await heard(callee), candidates(BURST));
  });

  test('a burst straight behind an initiate, without waiting for it', async (t) => {
    const { caller, callee } = await pair(t, server);
    const toUserId = callee.userId;
    caller.emit('call:initiate', { toUserId, callType: 'video' });
    caller.emit('call:offer', { toUserId, offer: offer() });
    burst(caller, callee);
    assert.deepEqual(await heard(callee), candidates(BURST));
    assert.deepEqual(callee.names, ['call:incoming', 'call:offer', ...Array(BURST).fill('call:ice-candidate')]);
    await caller.none('call:error', { after: [callee] });
  });

  test('a burst straight behind user-connected and an initiate', async (t) => {
    const callee = await joinAsBefore(t, server, someone('bob'));
    const caller = await join(t, server);
    caller.emit('user-connected', someone('alice'));
    caller.emit('call:initiate', { toUserId: callee.userId, callType: 'video' });
    burst(caller, callee);
    assert.deepEqual(await heard(callee), candidates(BURST));
    await caller.none('call:error');
  });

  test('a burst with an answer in its middle: before it candidates wait, then all come', async (t) => {
    const { caller, callee } = await ringing(t, server);
    const sent = candidates(60);
    burst(callee, caller, sent.slice(0, 30));
    callee.emit('call:answer', { toUserId: caller.userId, answer: answer() });
    burst(callee, caller, sent.slice(30));
    assert.deepEqual(await heard(caller, 60), sent);
    await caller.next('call:answer');
  });

  test('a call begun and ended in one breath', async (t) => {
    const { caller, callee } = await pair(t, server);
    const toUserId = callee.userId;
    for (let round = 0; round < 50; round += 1) {
      caller.emit('call:initiate', { toUserId, callType: 'audio' });
      caller.emit('call:offer', { toUserId, offer: offer(String(round)) });
      caller.emit('call:end', { toUserId });
    }
    await caller.fence();
    await callee.fence();
    assert.deepEqual(callee.names, Array(50).fill(['call:incoming', 'call:offer', 'call:ended']).flat());
    await caller.none('call:error');
  });

  test('an event sent right before leaving still counts', async (t) => {
    const callee = await join(t, server, { userId: someone('bob') });
    for (let round = 0; round < 20; round += 1) {
      const caller = await join(t, server, { userId: someone('alice') });
      caller.emit('call:initiate', { toUserId: callee.userId, callType: 'audio' });
      caller.emit('call:offer', { toUserId: callee.userId, offer: offer(String(round)) });
      caller.close();
      const { callId } = await callee.next('call:incoming', (event) => event.fromUserId === caller.userId);
      assert.deepEqual((await callee.next('call:offer')).offer, offer(String(round)));
      assert.equal((await callee.next('call:ended', (event) => event.callId === callId)).reason, 'cancelled');
    }
    await callee.nothingElse();
  });

  test('nothing said right after joining is lost', async (t) => {
    // Each client emits in its connect handler and leaves at once.
    const nobody = someone('nobody');
    const names = Array.from({ length: 60 }, () => someone('alice'));
    await Promise.all(
      names.map(async (userId) => {
        const raw = await rawSocket(t, server, { joins: false });
        raw.send(`40${JSON.stringify({ userId })}`);
        await raw.frame((text) => text.startsWith('40{'), 'CONNECT');
        raw.send(`421${JSON.stringify(['call:initiate', { toUserId: nobody, callType: 'audio' }])}`);
        const reply = await raw.frame((text) => text.startsWith('431['), 'the ack');
        raw.destroy();
        assert.equal(JSON.parse(reply.slice(3))[0].error.type, 'RECIPIENT_OFFLINE');
      }),
    );
  });
});

describe('the bound', { concurrency: 1 }, () => {
  // Authorization goes over HTTP. Later events wait for its reply.
  let backend;
  let asking;
  before(async () => {
    backend = await startBackend();
    asking = await startServer({ args: ['--authorize-url', backend.url, '--authorize-timeout', '10s'] });
  });
  after(async () => {
    await asking.stop();
    await backend.stop();
  });
  const event = (nameLength) => {
    const userIds = Array.from({ length: 500 }, (_, index) => String(index).padStart(nameLength, 'u'));
    return eventFrame('presence:subscribe', { userIds });
  };

  const floods = {
    'too many events': Array(1_200).fill(event(1)),
    'too many bytes': Array(100).fill(event(120)),
  };
  for (const [what, frames] of Object.entries(floods)) {
    test(`${what} waiting: that socket alone is closed`, async (t) => {
      const { caller, callee } = await activeCall(t, asking);
      const userId = someone('flood');
      const flooder = await rawSocket(t, asking, { userId });
      const called = await join(t, asking, { userId: someone('called') });
      const question = held();
      backend.answers(userId, question.answers);
      flooder.send(eventFrame('call:initiate', { toUserId: called.userId, callType: 'audio' }));
      await question.asked;
      flooder.send(...frames);
      await within(30_000, flooder.closed, 'the flooding socket is closed');
      await assertTalking(caller, callee);
      // The flooder's own call ends as if its connection were lost; the other users' call continues.
      question.release();
      await called.next('call:incoming');
      assert.equal((await called.next('call:ended')).reason, 'cancelled');
      await called.nothingElse();
      await assertTalking(caller, callee);
      await caller.nothingElse({ after: [callee] });
      await callee.nothingElse();
    });
  }

  test('a flood of relays is delivered in order as far as it was taken', async (t) => {
    const { caller: bystander, callee: other } = await activeCall(t, server);
    const flooder = await rawSocket(t, server, { userId: someone('flood') });
    const called = await join(t, server, { userId: someone('called') });
    await flooder.ack('call:initiate', { toUserId: called.userId, callType: 'audio' });
    const sent = candidates(20_000);
    flooder.send(...sent.map((one) => eventFrame('call:ice-candidate', { toUserId: called.userId, candidate: one })));
    await assertTalking(bystander, other);
    // The event was either processed, or exceeded the bound and ended the socket with its call.
    await Promise.race([flooder.ack('ice:servers', {}).catch(() => {}), flooder.closed]);
    if (called.socket.connected) await called.fence();
    const heard = called.log.filter(({ event }) => event === 'call:ice-candidate').map(({ payload }) => payload.candidate);
    assert.deepEqual(heard, sent.slice(0, heard.length));
    await assertTalking(bystander, other);
  });
});
