// The HTTP API for platform teams and operators: timelines, statistics, live calls.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { activeCall, answer, dial, pair, pickUp, ringing } from '../support/calls.mjs';
import { assertShape, eventually, isNow, isText, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { assertProblem, get, post, row } from '../support/http.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

const ended = (one) => one.endedAt !== null;

async function json(response, status = 200) {
  assert.equal(response.status, status, await response.clone().text());
  return response.json();
}

describe('a timeline', { concurrency: true }, () => {
  test('tells every transition, who made it, on what device of one\'s own, and where', async (t) => {
    const { caller, callee, callId } = await ringing(t, server, {
      caller: { deviceId: 'laptop' }, callee: { deviceId: 'phone' },
    });
    await pickUp(callee, caller);
    await callee.drop();
    await caller.next('call:peer-reconnecting');
    const again = await join(t, server, { userId: callee.userId, deviceId: 'phone' });
    await again.next('call:resumed');
    await caller.next('call:peer-reconnected');
    await caller.ok('call:end', { toUserId: callee.userId });
    await row(server, caller.userId, callId, ended);

    const timelineFor = async ({ userId }) => json(await get(server, `/v1/calls/${callId}/timeline`, { userId }));
    const found = await timelineFor(callee);
    assert.equal(found.callId, callId);
    const told = found.steps.map(({ what, by, device, reason }) => [what, by, device, reason]);
    // The id of the other party's device is not shown, because it suffices to take a call over.
    assert.deepEqual(told, [
      ['placed', 'caller', undefined, undefined],
      ['answered', 'callee', 'phone', undefined],
      ['lost', 'callee', 'phone', undefined],
      ['returned', 'callee', 'phone', undefined],
      ['ended', 'caller', undefined, 'completed'],
    ]);
    assert.deepEqual((await timelineFor(caller)).steps.map(({ device }) => device), ['laptop', undefined, undefined, undefined, 'laptop']);
    found.steps.forEach((step, index) => {
      assert.equal(step.version, index + 1);
      assert.ok(isNow(step.at) && /^[0-9a-f]{32}$/.test(step.node), JSON.stringify(step));
    });
  });

  test('of a time-out names no party', async (t) => {
    const hasty = await startServer({ args: ['--ring-timeout', '300ms'] });
    t.after(() => hasty.stop());
    const { caller, callId } = await ringing(t, hasty);
    await row(hasty, caller.userId, callId, ended);
    const { steps } = await json(await get(hasty, `/v1/calls/${callId}/timeline`, { userId: caller.userId }));
    assert.deepEqual([steps[1].what, steps[1].by, steps[1].reason], ['ended', undefined, 'no_answer']);
  });

  test("is not shown to others, nor that there is such a call", async (t) => {
    const { caller, callId } = await ringing(t, server);
    await row(server, caller.userId, callId);
    const stranger = { userId: someone('stranger') };
    const theirs = await get(server, `/v1/calls/${callId}/timeline`, stranger);
    const none = await get(server, '/v1/calls/01890a5d-ac96-774b-bcce-b302099a8057/timeline', stranger);
    assert.equal(await theirs.clone().text(), await none.text());
    await assertProblem(theirs, 404);
    await assertProblem(await get(server, '/v1/calls/nonsense/timeline', stranger), 400, 'id');
  });
});

describe('statistics', () => {
  test('count calls by how they went, in all and by time', async (t) => {
    const own = await startServer();
    t.after(() => own.stop());
    const since = Date.now() - 1_000;
    const answered = await activeCall(t, own);
    await answered.caller.ok('call:end', { toUserId: answered.callee.userId });
    await dial(answered.caller, answered.callee, { callType: 'audio' });
    await answered.callee.ok('call:reject', { toUserId: answered.caller.userId });
    await answered.caller.next('call:rejected');
    const { callId } = await dial(answered.callee, answered.caller, { callType: 'audio' });
    await row(own, answered.caller.userId, callId);

    const query = { since, until: Date.now() + 60_000, bucket: 'hour' };
    const all = async () => {
      const found = await json(await get(own, '/v1/stats', query));
      return found.total.calls === 3 && found;
    };
    const { total, buckets } = await eventually(all, 'all calls are counted');
    assertShape(total, {
      calls: 3,
      answered: 1,
      answerRate: 0.5,
      byType: { video: 1, audio: 2 },
      byStatus: { ended: 1, rejected: 1, pending: 1 },
      byEndReason: { completed: 1, declined: 1 },
      ringMs: (ring) => ring.p50 >= 0 && ring.p50 === ring.p99,
      durationS: (duration) => duration.p50 === 0 && duration.p90 === 0,
    });
    assert.ok(buckets.length === 1 || buckets.length === 2, 'the hour may have ended meanwhile');
    assert.equal(buckets.reduce((sum, bucket) => sum + bucket.calls, 0), 3);
    for (const bucket of buckets) assert.equal(bucket.start % 3_600_000, 0);
  });

  test('of a time without calls are empty', async () => {
    const { total, buckets } = await json(await get(server, '/v1/stats', { since: 0, until: 1_000, bucket: 'minute' }));
    assert.deepEqual(buckets, []);
    assert.deepEqual([total.calls, total.answerRate, total.ringMs, total.durationS], [0, null, null, null]);
  });

  test('name the parameter at fault', async () => {
    const good = { since: 0, until: 1, bucket: 'day' };
    for (const [field, value] of [
      ['since', undefined], ['since', 'x'], ['until', undefined], ['until', '-1'], ['bucket', 'week'], ['x', '1'],
    ]) {
      await assertProblem(await get(server, '/v1/stats', { ...good, [field]: value }), 400, field);
    }
    await assertProblem(await get(server, '/v1/stats', { since: 2, until: 1 }), 400, 'until');
    await assertProblem(await get(server, '/v1/stats', { since: 0, until: 60_000_001, bucket: 'minute' }), 400, 'bucket');
  });
});

describe('an operator', { concurrency: true }, () => {
  const live = (query) => get(server, '/v1/admin/calls', query).then((response) => json(response));

  test('sees the live calls of all nodes, and where they are', async (t) => {
    const own = await startServer();
    t.after(() => own.stop());
    const calls = [];
    for (let count = 0; count < 7; count += 1) calls.push(await activeCall(t, own));
    const over = calls.pop();
    await over.caller.ok('call:end', { toUserId: over.callee.userId });
    const found = new Map();
    let cursor;
    do {
      const part = await json(await get(own, '/v1/admin/calls', { limit: 2, cursor }));
      for (const call of part.calls) found.set(call.id, call);
      cursor = part.nextCursor ?? undefined;
    } while (cursor !== undefined);
    assert.deepEqual([...found.keys()].sort(), calls.map((call) => call.callId).sort());
    for (const { caller, callee, callId } of calls) {
      const call = found.get(callId);
      assert.deepEqual([call.caller, call.receiver, call.status], [caller.userId, callee.userId, 'answered']);
      assert.ok(isText(call.callerNode) && isText(call.receiverNode), JSON.stringify(call));
    }
  });

  test('finds the call of a user', async (t) => {
    const { caller, callee, callId } = await ringing(t, server);
    for (const { userId } of [caller, callee]) {
      const { calls, nextCursor } = await live({ userId });
      assert.deepEqual([calls.map((call) => call.id), nextCursor], [[callId], null]);
    }
    assert.deepEqual(await live({ userId: someone('nobody') }), { calls: [], nextCursor: null });
  });

  test('ends a call: both parties hear it, and history tells it', async (t) => {
    for (const make of [ringing, activeCall]) {
      const { caller, callee, callId } = await make(t, server);
      const done = await json(await post(server, `/v1/admin/calls/${callId}/end`));
      assert.equal(done.endReason, 'terminated');
      for (const client of [caller, callee]) assert.equal((await client.next('call:ended')).reason, 'terminated');
      const stored = await row(server, caller.userId, callId, ended);
      assert.deepEqual(stored, done);
      const again = await json(await post(server, `/v1/admin/calls/${callId}/end`));
      assert.deepEqual(again, done, 'it ended already, and stays as it ended');
      await dial(callee, caller);
    }
    await assertProblem(await post(server, '/v1/admin/calls/01890a5d-ac96-774b-bcce-b302099a8057/end'), 404);
  });

  test('disconnects a user on all nodes, and the call ends at once', async (t) => {
    const { caller, callee } = await pair(t, server, { callee: { deviceId: 'phone' } });
    const devices = [callee];
    for (const deviceId of ['tablet', 'watch', 'car']) {
      devices.push(await join(t, server, { userId: callee.userId, deviceId }));
    }
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await callee.next('call:incoming');
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await caller.next('call:answer');
    const { nodes } = await json(await post(server, `/v1/admin/users/${callee.userId}/disconnect`), 202);
    assert.ok(nodes >= 1);
    for (const device of devices) assert.equal(await device.next('disconnect'), 'io server disconnect');
    assert.equal((await caller.next('call:ended')).reason, 'connection_lost');
    const { userId } = callee;
    const isOffline = async () => (await json(await get(server, '/v1/presence', { userIds: userId }))).presence[userId] === 'offline';
    await eventually(isOffline, 'all have been signed off');
    const refused = await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assert.equal(refused.error?.type, 'RECIPIENT_OFFLINE');
    const nobody = await json(await post(server, `/v1/admin/users/${someone('nobody')}/disconnect`), 202);
    assert.deepEqual(nobody, { nodes: 0 });
  });

  test('is told what is wrong with a request', async () => {
    await assertProblem(await get(server, '/v1/admin/calls', { limit: 0 }), 400, 'limit');
    await assertProblem(await get(server, '/v1/admin/calls', { cursor: 'X' }), 400, 'cursor');
    await assertProblem(await post(server, '/v1/admin/calls/x/end'), 400, 'id');
    await assertProblem(await post(server, `/v1/admin/users/${'x'.repeat(129)}/disconnect`), 400, 'id');
    await assertProblem(await get(server, '/v1/admin/users/x/disconnect'), 405);
  });
});
