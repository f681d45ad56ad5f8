// A single node that is killed, and started again: its live calls, and what history says of them.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, assertTalking } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { page } from '../support/http.mjs';
import { scrape } from '../support/metrics.mjs';
import { ONE_NODE, startServer } from '../support/server.mjs';

const onDevices = { caller: { deviceId: 'laptop' }, callee: { deviceId: 'phone' } };
const BEAT_MS = 5_000;

async function rowOf(server, { caller, callId }) {
  const { calls } = await page(server, caller.userId);
  return calls.find(({ id }) => id === callId);
}

const rowThat = (server, call, is, what) =>
  eventually(async () => {
    const row = await rowOf(server, call);
    return row && is(row) && row;
  }, what);

/** A server with an active call that is in its history, killed and started again. */
async function killed(t, settings = [], before = () => {}) {
  const server = await startServer({ args: settings });
  t.after(() => server.stop());
  const call = await activeCall(t, server, onDevices);
  await rowThat(server, call, ({ status }) => status === 'answered', 'the call is in history');
  await before(server);
  const killedAt = Date.now();
  await server.kill('SIGKILL');
  for (const one of [call.caller, call.callee]) await one.next('disconnect');
  await server.start();
  return { server, killedAt, ...call };
}

describe('a call whose only node is killed', { ...ONE_NODE, concurrency: true }, () => {
  test('goes on when both devices are back, and lasted as long as it lasted', async (t) => {
    const { server, ...call } = await killed(t);
    const { caller, callee, callId } = call;
    await caller.comeBack();
    assert.equal((await caller.next('call:resumed')).callId, callId);
    assert.equal((await rowThat(server, call, ({ status }) => status === 'answered', 'it is live again')).endedAt, null);
    await callee.comeBack();
    assert.equal((await callee.next('call:resumed')).callId, callId);
    assert.equal((await caller.next('call:peer-reconnected')).callId, callId);
    await assertTalking(caller, callee);
    const other = await join(t, server, { userId: someone('carl') });
    await other.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await other.next('call:busy');

    await caller.ok('call:end', { toUserId: callee.userId });
    assert.equal((await callee.next('call:ended')).reason, 'completed');
    const row = await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
    assert.equal(row.endReason, 'completed');
    assert.equal(row.duration, Math.floor((row.endedAt - row.startedAt) / 1_000));
    assert.ok(Math.abs(row.endedAt - Date.now()) < 5_000, 'it ended when it was ended');
  });

  test('ended when the node was last alive, if nobody comes back, to within 5 s', async (t) => {
    const beats = async (server) => (await scrape(server)).value('switchboard_history_seconds_count', { operation: 'beat' });
    const { server, killedAt, ...call } = await killed(t, ['--reconnect-grace', '500ms'], async (running) => {
      const before = await beats(running);
      await eventually(async () => (await beats(running)) >= before + 2, 'the node has said twice that it lives', 15_000);
    });
    const row = await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
    assert.equal(row.endReason, 'connection_lost');
    const lostMs = killedAt - row.endedAt;
    assert.ok(lostMs >= -100 && lostMs <= BEAT_MS + 500, `${lostMs} ms of the call are missing`);
    assert.ok(row.duration >= 4, `it lasted ${row.duration} s`);
  });

  test('is over for who comes back too late', async (t) => {
    const { server, ...call } = await killed(t, ['--reconnect-grace', '500ms']);
    await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
    await call.caller.comeBack();
    assert.equal((await call.caller.next('call:ended')).reason, 'connection_lost');
    assertRefused(await call.caller.ack('call:offer', { toUserId: call.callee.userId, offer: { type: 'offer', sdp: 'v=0' } }), 'NO_ACTIVE_CALL');
  });
});
