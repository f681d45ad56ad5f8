// Call history over HTTP: one row for every call, with its true end.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { activeCall, dial, pair, pickUp, ringing } from '../support/calls.mjs';
import { assertRefused, assertShape, eventually, isNow, isText, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { assertProblem, calls, get, page, row } from '../support/http.mjs';
import { ONE_NODE, startServer } from '../support/server.mjs';

const SHORT = ['--ring-timeout', '700ms', '--reconnect-grace', '300ms', '--max-call-duration', '1s'];

const server = await startServer();
const hasty = await startServer({ args: SHORT });
after(() => server.stop());
after(() => hasty.stop());

const ended = (one) => one.endedAt !== null;

/** Checks all fields of the call's final row, and that both parties see the same. */
async function assertRow(on, { caller, callee, callId }, { status, endReason, callType = 'video', answered = false }) {
  const found = await row(on, caller.userId, callId, (one) => one.endReason === endReason);
  assertShape(found, {
    id: callId,
    caller: caller.userId,
    receiver: callee.userId,
    callType,
    status,
    endReason,
    duration: answered ? Number.isInteger : null,
    startedAt: answered ? isNow : null,
    endedAt: isNow,
    createdAt: isNow,
    updatedAt: isNow,
  });
  assert.ok(found.createdAt <= found.endedAt && found.endedAt <= found.updatedAt, JSON.stringify(found));
  if (answered) {
    assert.ok(found.createdAt <= found.startedAt && found.startedAt <= found.endedAt, JSON.stringify(found));
    assert.equal(found.duration, Math.floor((found.endedAt - found.startedAt) / 1_000));
  }
  assert.deepEqual(await (await get(on, `/v1/calls/${callId}`, { userId: callee.userId })).json(), found);
  assert.deepEqual((await calls(on, callee.userId)).find((one) => one.id === callId), found);
  return found;
}

/** Calls to an offline user, which make rows quickly. The newest is last. */
async function missedCalls(caller, count, toUserId = someone('nobody')) {
  const ids = [];
  for (let number = 0; number < count; number += 1) {
    const reply = await caller.ack('call:initiate', { toUserId, callType: number % 2 ? 'audio' : 'video' });
    assertRefused(reply, 'RECIPIENT_OFFLINE');
    ids.push(reply.error.callId);
    // Calls of the same millisecond have no order by time.
    await pause(2);
  }
  await eventually(async () => (await calls(server, caller.userId)).some((one) => one.id === ids.at(-1)), 'the rows are stored');
  return ids;
}

const idsOf = (rows) => rows.map((one) => one.id);

describe('a row', { concurrency: true }, () => {
  test('of a call that rings, then is answered, then has ended', async (t) => {
    const { caller, callee, callId } = await ringing(t, server, { callType: 'audio' });
    const always = {
      id: callId,
      caller: caller.userId,
      receiver: callee.userId,
      callType: 'audio',
      duration: null,
      createdAt: isNow,
      updatedAt: isNow,
      endedAt: null,
      endReason: null,
    };
    const pending = await row(server, caller.userId, callId, (one) => one.status === 'pending');
    assertShape(pending, { ...always, status: 'pending', startedAt: null });
    await pickUp(callee, caller);
    const answered = await row(server, caller.userId, callId, (one) => one.status === 'answered');
    assertShape(answered, { ...always, status: 'answered', startedAt: isNow });
    assert.equal(answered.createdAt, pending.createdAt);
    await caller.ok('call:end', { toUserId: callee.userId, duration: 4_000 });
    const done = await assertRow(server, { caller, callee, callId }, { status: 'ended', endReason: 'completed', callType: 'audio', answered: true });
    assert.ok(done.duration < 60, 'the duration is the server’s, not what the client said');
  });

  test('declined', async (t) => {
    const call = await ringing(t, server);
    await call.callee.ok('call:reject', { toUserId: call.caller.userId });
    await assertRow(server, call, { status: 'rejected', endReason: 'declined' });
    const other = await ringing(t, server);
    await other.callee.ok('call:end', { toUserId: other.caller.userId });
    await assertRow(server, other, { status: 'rejected', endReason: 'declined' });
  });

  test('busy, said by the callee', async (t) => {
    const call = await ringing(t, server);
    await call.callee.ok('call:busy', { toUserId: call.caller.userId });
    await assertRow(server, call, { status: 'missed', endReason: 'busy' });
  });

  test('busy, in another call', async (t) => {
    const { callee } = await activeCall(t, server);
    const carol = await join(t, server, { userId: someone('carol') });
    const { callId } = await carol.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await assertRow(server, { caller: carol, callee, callId }, { status: 'missed', endReason: 'busy', callType: 'audio' });
  });

  test('offline', async (t) => {
    const caller = await join(t, server, { userId: someone('alice') });
    const callee = { userId: someone('nobody') };
    const reply = await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await assertRow(server, { caller, callee, callId: reply.error.callId }, { status: 'missed', endReason: 'offline', callType: 'audio' });
  });

  test('cancelled, on purpose and by losing the caller', async (t) => {
    const call = await ringing(t, server);
    await call.caller.ok('call:end', { toUserId: call.callee.userId });
    await assertRow(server, call, { status: 'missed', endReason: 'cancelled' });
    const lost = await ringing(t, server);
    lost.caller.close();
    await assertRow(server, lost, { status: 'missed', endReason: 'cancelled' });
  });

  test('no_answer', async (t) => {
    const call = await ringing(t, hasty);
    await call.caller.next('call:ended');
    const done = await assertRow(hasty, call, { status: 'missed', endReason: 'no_answer' });
    assert.ok(done.endedAt - done.createdAt >= 650, `it rang for ${done.endedAt - done.createdAt} ms`);
  });

  test('connection_lost', async (t) => {
    const call = await activeCall(t, server);
    call.callee.close();
    await assertRow(server, call, { status: 'ended', endReason: 'connection_lost', answered: true });
    const graceOver = await activeCall(t, hasty, { caller: { deviceId: 'laptop' } });
    await graceOver.caller.drop();
    await assertRow(hasty, graceOver, { status: 'ended', endReason: 'connection_lost', answered: true });
  });

  test('max_duration', async (t) => {
    const call = await activeCall(t, hasty);
    await call.caller.next('call:ended');
    const done = await assertRow(hasty, call, { status: 'ended', endReason: 'max_duration', answered: true });
    assert.ok(done.endedAt - done.createdAt >= 1_000, JSON.stringify(done));
  });

  test('superseded, before and after the answer', async (t) => {
    for (const answered of [false, true]) {
      const call = await ringing(t, server, { caller: { deviceId: 'laptop' } });
      if (answered) await pickUp(call.callee, call.caller);
      await call.caller.drop();
      await call.callee.next('call:peer-reconnecting');
      await call.caller.comeBack();
      await call.caller.next('call:resumed');
      await call.caller.ok('call:initiate', { toUserId: call.callee.userId, callType: 'audio' });
      await assertRow(server, call, { status: answered ? 'ended' : 'missed', endReason: 'superseded', answered });
    }
  });

  test('is one for every call, whatever was refused on the way', async (t) => {
    const { caller, callee } = await pair(t, server);
    const { callId } = await dial(caller, callee);
    const request = { toUserId: caller.userId, callType: 'audio' };
    assertRefused(await callee.ack('call:initiate', request), 'GLARE');
    assertRefused(await caller.ack('call:initiate', { ...request, toUserId: callee.userId }), 'CALL_IN_PROGRESS');
    assertRefused(await caller.ack('call:initiate', request), 'SELF_CALL');
    await pickUp(callee, caller);
    await caller.ok('call:end', { toUserId: callee.userId });
    await row(server, caller.userId, callId, ended);
    assert.deepEqual(idsOf(await calls(server, caller.userId)), [callId]);
    assert.deepEqual(idsOf(await calls(server, callee.userId)), [callId]);
  });
});

describe('the list', { concurrency: true }, () => {
  test('is newest first, empty for a stranger, and shows nobody else’s calls', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const ids = await missedCalls(alice, 5);
    assert.deepEqual(idsOf(await calls(server, alice.userId)), [...ids].reverse());
    assert.deepEqual(await page(server, someone('stranger')), { calls: [], nextCursor: null });
    const response = await get(server, `/v1/calls/${ids[0]}`, { userId: someone('stranger') });
    await assertProblem(response, 404);
  });

  test('paging neither skips nor repeats while rows are added', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const before = await missedCalls(alice, 23);
    const seen = [];
    const times = [];
    let cursor;
    let pages = 0;
    do {
      const one = await page(server, alice.userId, { limit: 5, cursor });
      seen.push(...idsOf(one.calls));
      times.push(...one.calls.map((call) => call.createdAt));
      pages += 1;
      assert.equal(one.calls.length, one.nextCursor === null ? 3 : 5);
      cursor = one.nextCursor;
      await missedCalls(alice, 3);
    } while (cursor !== null);
    // Calls of the same millisecond may have any order, but always the same one.
    assert.deepEqual([...seen].sort(), [...before].sort());
    assert.deepEqual(times, [...times].sort((one, other) => other - one));
    assert.equal(pages, 5);
  });

  test('a page that is just full ends cleanly', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const ids = await missedCalls(alice, 4);
    const first = await page(server, alice.userId, { limit: 4 });
    assert.deepEqual(idsOf(first.calls), [...ids].reverse());
    const rest = first.nextCursor === null ? [] : await calls(server, alice.userId, { cursor: first.nextCursor });
    assert.deepEqual(rest, []);
  });

  test('limit: 50 by default, up to 200', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    await missedCalls(alice, 60);
    assert.equal((await calls(server, alice.userId)).length, 50);
    assert.equal((await calls(server, alice.userId, { limit: 1 })).length, 1);
    assert.equal((await calls(server, alice.userId, { limit: 200 })).length, 60);
  });

  test('filters, alone and together', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const bob = await join(t, server, { userId: someone('bob') });
    const nobody = someone('nobody');
    const ids = {};
    [ids.offlineVideo, ids.offlineAudio] = await missedCalls(alice, 2, nobody);
    ids.completed = (await dial(alice, bob, { callType: 'video' })).callId;
    await pickUp(bob, alice);
    await alice.ok('call:end', { toUserId: bob.userId });
    await bob.next('call:ended');
    ids.rejected = (await dial(bob, alice, { callType: 'audio' })).callId;
    await alice.ok('call:reject', { toUserId: bob.userId });
    await bob.next('call:rejected');
    ids.live = (await dial(alice, bob, { callType: 'audio' })).callId;
    for (const id of [ids.completed, ids.rejected]) await row(server, alice.userId, id, ended);
    await row(server, alice.userId, ids.live);

    const assertFound = async (query, ...expected) => {
      assert.deepEqual(idsOf(await calls(server, alice.userId, query)), expected.map((name) => ids[name]), JSON.stringify(query));
    };
    await assertFound({}, 'live', 'rejected', 'completed', 'offlineAudio', 'offlineVideo');
    await assertFound({ status: 'missed' }, 'offlineAudio', 'offlineVideo');
    await assertFound({ status: 'ended' }, 'completed');
    await assertFound({ status: 'rejected' }, 'rejected');
    await assertFound({ status: 'pending' }, 'live');
    await assertFound({ status: 'answered' });
    await assertFound({ type: 'audio' }, 'live', 'rejected', 'offlineAudio');
    await assertFound({ type: 'video' }, 'completed', 'offlineVideo');
    await assertFound({ with: bob.userId }, 'live', 'rejected', 'completed');
    await assertFound({ with: nobody }, 'offlineAudio', 'offlineVideo');
    await assertFound({ with: someone('unknown') });
    await assertFound({ with: bob.userId, type: 'audio', status: 'rejected' }, 'rejected');
    await pickUp(bob, alice);
    await row(server, alice.userId, ids.live, (one) => one.status === 'answered');
    await assertFound({ status: 'answered' }, 'live');

    const [completed, rejected] = (await calls(server, alice.userId)).filter((one) => [ids.completed, ids.rejected].includes(one.id)).reverse();
    assert.equal(completed.id, ids.completed);
    await assertFound({ since: rejected.createdAt }, 'live', 'rejected');
    await assertFound({ since: rejected.createdAt + 1, until: Date.now() + 1_000 }, 'live');
    await assertFound({ until: completed.createdAt }, 'offlineAudio', 'offlineVideo');
    await assertFound({ since: completed.createdAt, until: completed.createdAt + 1 }, 'completed');

    const first = await page(server, alice.userId, { type: 'audio', limit: 2 });
    assert.deepEqual(idsOf(first.calls), [ids.live, ids.rejected]);
    await assertFound({ type: 'audio', limit: 2, cursor: first.nextCursor }, 'offlineAudio');
  });

  test('survives a restart of the server', ONE_NODE, async (t) => {
    const brief = await startServer();
    t.after(() => brief.stop());
    const call = await activeCall(t, brief);
    await call.caller.ok('call:end', { toUserId: call.callee.userId });
    const before = await row(brief, call.caller.userId, call.callId, ended);
    await brief.restart();
    assert.deepEqual(await calls(brief, call.caller.userId), [before]);
    assert.deepEqual(await calls(brief, call.callee.userId), [before]);
    const again = await activeCall(t, brief);
    assert.ok(await row(brief, again.caller.userId, again.callId));
  });

  test('what has ended right before the server leaves is stored', ONE_NODE, async (t) => {
    const brief = await startServer();
    t.after(() => brief.stop());
    const { caller, callee } = await pair(t, brief);
    const ids = [];
    for (let round = 0; round < 10; round += 1) {
      ids.push((await dial(caller, callee)).callId);
      await caller.ok('call:end', { toUserId: callee.userId });
      await callee.next('call:ended');
    }
    await brief.restart();
    const rows = await calls(brief, caller.userId);
    assert.deepEqual(idsOf(rows), ids.reverse());
    for (const one of rows) assert.equal(one.endReason, 'cancelled');
  });

  test('a call that was live when the server left does not stay live for ever', ONE_NODE, async (t) => {
    const brief = await startServer();
    t.after(() => brief.stop());
    const call = await activeCall(t, brief);
    await row(brief, call.caller.userId, call.callId, (one) => one.status === 'answered');
    await brief.restart();
    const after = await row(brief, call.caller.userId, call.callId, ended);
    assert.equal(after.status, 'ended');
    assert.ok(isText(after.endReason));
  });
});

describe('bad requests', { concurrency: true }, () => {
  const userId = 'alice';
  const wrong = {
    userId: [undefined, '', 'x'.repeat(129), 'a\u0000b'],
    limit: ['0', '201', '-1', 'ten', '', '1.5', '99999999999999999999'],
    cursor: ['x', '!!!', '0', 'a'.repeat(5_000), '../..'],
    status: ['lost', 'MISSED', ''],
    type: ['fax', 'AUDIO', ''],
    with: ['', 'x'.repeat(129)],
    since: ['yesterday', '', '1.5', '2020-01-01'],
    until: ['tomorrow', '', '99999999999999999999999'],
  };
  for (const [field, values] of Object.entries(wrong)) {
    test(`${field} is named in the problem`, async () => {
      for (const value of values) await assertProblem(await get(server, '/v1/calls', { userId, [field]: value }), 400, field);
    });
  }

  test('an unknown parameter is named, or ignored', async () => {
    const response = await get(server, '/v1/calls', { userId, colour: 'red' });
    if (response.status !== 200) await assertProblem(response, 400, 'colour');
  });

  test('a call that does not exist, or whose id makes no sense', async () => {
    await assertProblem(await get(server, '/v1/calls/01890a5d-ac96-774b-bcce-b302099a8057', { userId }), 404);
    for (const id of ['nonsense', '%00', '..%2f..', 'x'.repeat(5_000)]) {
      const response = await get(server, `/v1/calls/${id}`, { userId });
      assert.ok([400, 404].includes(response.status), `${id.slice(0, 20)}: ${response.status}`);
      assert.match(response.headers.get('content-type'), /^application\/problem\+json/);
      await response.arrayBuffer();
    }
    await assertProblem(await get(server, '/v1/calls/01890a5d-ac96-774b-bcce-b302099a8057'), 400, 'userId');
  });

  test('a method that is not served', async () => {
    for (const method of ['POST', 'DELETE']) {
      const response = await fetch(`${server.url}/v1/calls?userId=alice`, { method });
      assert.equal(response.status, 405);
      await response.arrayBuffer();
    }
  });

  test('text that would be SQL is a name like any other', async (t) => {
    const strange = await join(t, server, { userId: `${someone('x')}' OR '1'='1` });
    assert.deepEqual(await calls(server, strange.userId), []);
    const ids = await missedCalls(strange, 1, `"; DROP TABLE calls; --`);
    assert.deepEqual(idsOf(await calls(server, strange.userId, { with: `"; DROP TABLE calls; --` })), ids);
  });
});
