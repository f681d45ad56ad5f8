// A single node that is killed or stopped, and restarted: its live calls and their history.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, assertTalking, ringing } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { page } from '../support/http.mjs';
import { scrape } from '../support/metrics.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { ONE_NODE, Server, startServer } from '../support/server.mjs';

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

/** A server with its history in SQLite, or in a Postgres of its own. */
async function serverWith(t, { history, settings = [] }) {
  if (history !== 'Postgres') {
    const server = await Server.create(settings, {});
    t.after(() => server.stop());
    return server;
  }
  const postgres = await startPostgres();
  t.after(() => postgres.stop());
  const server = await Server.create([...settings, '--database-url', postgres.url], {});
  t.after(() => server.stop());
  return server;
}

/** A server with an active call that is in its history, stopped by the signal and started again. */
async function restarted(t, { signal = 'SIGKILL', before = () => {}, ...options } = {}) {
  const server = await serverWith(t, options);
  const call = await activeCall(t, server, onDevices);
  await rowThat(server, call, ({ status }) => status === 'answered', 'the call is in history');
  await before(server);
  const stoppedAt = Date.now();
  const exit = await server.kill(signal);
  if (signal === 'SIGTERM') assert.deepEqual(exit, { code: 0, signal: null }, server.logs());
  for (const one of [call.caller, call.callee]) await one.next('disconnect');
  await server.start();
  return { server, stoppedAt, ...call };
}

describe('a call whose only node is started again', { ...ONE_NODE, concurrency: true }, () => {
  for (const history of ['SQLite', 'Postgres']) {
    for (const signal of ['SIGKILL', 'SIGTERM']) {
      test(`goes on when both devices are back, and lasted as long as it lasted: ${signal}, ${history}`, async (t) => {
        const { server, ...call } = await restarted(t, { signal, history });
        const { caller, callee, callId } = call;
        assert.ok(!caller.names.includes('call:ended'), 'nobody is told that it ended');
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
    }

    test(`goes on after one restart after the other, in both ways: ${history}`, async (t) => {
      const { server, caller, callee, callId } = await restarted(t, { signal: 'SIGTERM', history });
      for (const signal of ['SIGTERM', 'SIGKILL', 'SIGTERM']) {
        for (const one of [caller, callee]) {
          await one.comeBack();
          assert.equal((await one.next('call:resumed')).callId, callId);
        }
        await assertTalking(caller, callee);
        await server.kill(signal);
        for (const one of [caller, callee]) await one.next('disconnect');
        await server.start();
      }
      await callee.comeBack();
      assert.equal((await callee.next('call:resumed')).callId, callId);
    });

    test(`ended when the node was stopped, if nobody comes back: ${history}`, async (t) => {
      const grace = ['--reconnect-grace', '500ms'];
      const { server, stoppedAt, ...call } = await restarted(t, { signal: 'SIGTERM', history, settings: grace });
      const row = await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
      assert.equal(row.endReason, 'connection_lost');
      const afterMs = row.endedAt - stoppedAt;
      assert.ok(afterMs >= -100 && afterMs <= 1_500, `it ended ${afterMs} ms after the node was told to stop`);
    });
  }

  test('ended when the node was last alive, if nobody comes back, to within 5 s', async (t) => {
    const beats = async (server) => (await scrape(server)).value('switchboard_history_seconds_count', { operation: 'beat' });
    const saysTwice = async (running) => {
      const before = await beats(running);
      await eventually(async () => (await beats(running)) >= before + 2, 'the node has said twice that it lives', 15_000);
    };
    const grace = ['--reconnect-grace', '500ms'];
    const { server, stoppedAt, ...call } = await restarted(t, { settings: grace, before: saysTwice });
    const row = await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
    assert.equal(row.endReason, 'connection_lost');
    const lostMs = stoppedAt - row.endedAt;
    assert.ok(lostMs >= -100 && lostMs <= BEAT_MS + 500, `${lostMs} ms of the call are missing`);
    assert.ok(row.duration >= 4, `it lasted ${row.duration} s`);
  });

  for (const signal of ['SIGKILL', 'SIGTERM']) {
    test(`is over for who comes back too late: ${signal}`, async (t) => {
      const { server, ...call } = await restarted(t, { signal, settings: ['--reconnect-grace', '500ms'] });
      await rowThat(server, call, ({ status }) => status === 'ended', 'it has ended');
      await call.caller.comeBack();
      assert.equal((await call.caller.next('call:ended')).reason, 'connection_lost');
      assertRefused(await call.caller.ack('call:offer', { toUserId: call.callee.userId, offer: { type: 'offer', sdp: 'v=0' } }), 'NO_ACTIVE_CALL');
    });
  }
});

describe('a node that is told to stop ends what the next one could not resume', { ...ONE_NODE, concurrency: true }, () => {
  const kinds = [
    { name: 'a call that rings', make: ringing, options: onDevices, status: 'missed' },
    { name: 'a call of a device without an id', make: activeCall, options: { caller: onDevices.caller }, status: 'ended' },
  ];
  for (const { name, make, options, status } of kinds) {
    test(`${name}: both are told before their connections close`, async (t) => {
      const server = await startServer();
      t.after(() => server.stop());
      const call = await make(t, server, options);
      const { code } = await server.kill('SIGTERM');
      assert.equal(code, 0, server.logs());
      for (const one of [call.caller, call.callee]) {
        assert.equal((await one.next('call:ended')).reason, 'terminated');
        await one.next('disconnect');
        assert.ok(one.names.indexOf('call:ended') < one.names.indexOf('disconnect'));
      }
      await server.start();
      const row = await rowOf(server, call);
      assert.deepEqual([row.status, row.endReason], [status, 'terminated']);
      await call.caller.comeBack();
      assert.equal((await call.caller.ok('call:sync', {})).call, null);
      const again = await join(t, server, { userId: call.callee.userId });
      assert.equal((await call.caller.ok('call:initiate', { toUserId: again.userId, callType: 'audio' })).status, 'pending');
    });
  }
});

test('a second node without Redis on one Postgres leaves the calls of the first alone', ONE_NODE, async (t) => {
  const first = await serverWith(t, { history: 'Postgres' });
  const call = await activeCall(t, first, onDevices);
  await rowThat(first, call, ({ status }) => status === 'answered', 'the call is in history');
  const at = first.args.indexOf('--database-url');
  const second = await Server.create(first.args.slice(at, at + 2), {});
  t.after(() => second.stop());
  assert.match(second.logs(), /another process without Redis keeps its live calls in this database/);
  assert.equal((await rowOf(second, call)).status, 'answered');
  await second.kill('SIGKILL');
  await second.start();
  assert.equal((await rowOf(second, call)).status, 'answered');
  await assertTalking(call.caller, call.callee);
  await first.kill('SIGKILL');
  for (const one of [call.caller, call.callee]) await one.next('disconnect');
  await first.start();
  await call.caller.comeBack();
  assert.equal((await call.caller.next('call:resumed')).callId, call.callId);
});
