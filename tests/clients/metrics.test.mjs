// Metrics of calls: exact counts, on one node or as the sum of several.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { activeCall, candidate, dial, pair, pickUp, ringing } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { post } from '../support/http.mjs';
import { counted, scrape } from '../support/metrics.mjs';
import { startServer } from '../support/server.mjs';

const ATTEMPTS = 'switchboard_call_attempts_total';
const ENDED = 'switchboard_calls_ended_total';
const RING = 'switchboard_call_ring_seconds_count';

async function serverFor(t, ...args) {
  const server = await startServer({ args });
  t.after(() => server.stop());
  return { server, before: await scrape(server) };
}

/** The caller may not have received all events yet, nor may all nodes have been notified. */
const hangUp = (caller, callee) => caller.ok('call:end', { toUserId: callee.userId });

describe('metrics', { concurrency: 4 }, () => {
  test('are what Prometheus takes for good', async (t) => {
    const { server } = await serverFor(t);
    const { adminUrl } = server.nodes?.[0] ?? server;
    const response = await fetch(`${adminUrl}/metrics`);
    assert.equal(response.headers.get('content-type'), 'text/plain; version=0.0.4');
    const complaints = execFileSync('promtool', ['check', 'metrics'], { input: await response.text(), encoding: 'utf8' });
    assert.equal(complaints, '');
  });

  test('tell of the process and of the build', async (t) => {
    const { server, before } = await serverFor(t);
    const nodes = server.nodes?.length ?? 1;
    assert.equal(before.value('switchboard_build_info'), nodes);
    assert.equal(before.value('switchboard_ready'), nodes);
    assert.ok(before.value('process_resident_memory_bytes') > 5_000_000 * nodes);
    assert.ok(before.value('process_open_fds') > 5 * nodes);
    assert.ok(before.value('process_max_fds') >= 256 * nodes);
    const started = before.value('process_start_time_seconds') / nodes;
    assert.ok(Math.abs(started - Date.now() / 1_000) < 60, `${started}`);
    await eventually(async () => {
      for (let n = 0; n < 20; n += 1) await scrape(server);
      return (await scrape(server)).value('process_cpu_seconds_total') > 0;
    }, 'CPU time is used');
  });

  test('of a call from the first ring to its end', async (t) => {
    const { server, before } = await serverFor(t);
    const path = server.nodes ? 'remote' : 'local';
    const { caller, callee } = await ringing(t, server);
    await counted(server, before, {
      switchboard_calls: { ringing: 1 },
      switchboard_users: { '': 2 },
      switchboard_sockets: { websocket: 2 },
      switchboard_sockets_joined_total: { '': 2 },
      [ATTEMPTS]: { 'ringing video': 1 },
      [RING]: {},
    });
    await pickUp(callee, caller);
    for (const number of [1, 2, 3]) {
      await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: candidate(number) });
      await callee.next('call:ice-candidate');
    }
    await counted(server, before, {
      switchboard_calls: { active: 1 },
      switchboard_call_setup_seconds_count: { '': 1 },
      [RING]: { answered: 1 },
      switchboard_relay_seconds_count: { [`answer ${path}`]: 1, [`candidate ${path}`]: 3, [`offer ${path}`]: 1 },
    });
    await hangUp(caller, callee);
    await callee.next('call:ended');
    caller.close();
    callee.close();
    const after = await counted(server, before, {
      switchboard_calls: {},
      switchboard_users: {},
      switchboard_sockets: {},
      switchboard_sockets_closed_total: { client: 2 },
      [ENDED]: { 'completed video': 1 },
      switchboard_call_duration_seconds_count: { video: 1 },
      switchboard_errors_total: {},
      switchboard_limits_hit_total: {},
      switchboard_invariant_violations_total: {},
      switchboard_client_messages_received_total: {
        'call:initiate': 1, 'call:offer': 1, 'call:answer': 1, 'call:ice-candidate': 3, 'call:end': 1, 'ice:servers': 2,
      },
      switchboard_client_messages_sent_total: {
        'call:ringing': 1, 'call:incoming': 1, 'call:offer': 1, 'call:answer': 1, 'call:ice-candidate': 3, 'call:ended': 1, ack: 9,
      },
    });
    for (const name of ['call_setup', 'call_ring', 'call_duration', 'relay', 'history']) {
      assert.ok(after.value(`switchboard_${name}_seconds_sum`) > 0, name);
    }
    const relay = after.value('switchboard_relay_seconds_sum') / 5;
    assert.ok(relay > 0.000_01 && relay < 1, `${relay} s a relay`);
    const bytes = after.value('switchboard_client_received_bytes_total', { event: 'call:ice-candidate' });
    assert.ok(bytes > 3 * JSON.stringify(candidate(1)).length, `${bytes}`);
    assert.ok(after.value('switchboard_client_sent_bytes_total', { event: 'call:offer' }) > 100);
    await eventually(async () => {
      const now = await scrape(server);
      return now.value('switchboard_history_rows_written_total') >= 1
        && now.value('switchboard_history_backlog_rows') === 0
        && now.value('switchboard_history_backlog_age_seconds') === 0;
    }, 'the row is written');
    if (server.nodes) {
      assert.ok(after.value('switchboard_redis_command_seconds_count', { command: 'commit' }) >= 3);
      assert.equal(after.value('switchboard_redis_errors_total'), 0);
      assert.equal(after.value('switchboard_node_messages_sent_total', { message: 'relay' }), 5);
      assert.equal(after.value('switchboard_node_messages_received_total', { message: 'relay' }), 5);
      assert.equal(after.value('switchboard_node_queue_messages'), 0);
      assert.ok(after.value('switchboard_node_publishes_total', { content: 'messages' }) > 0);
    }
  });

  test('of calls that nobody takes', async (t) => {
    const { server, before } = await serverFor(t);
    const { caller, callee } = await pair(t, server);
    await dial(caller, callee, { callType: 'audio', withOffer: false });
    await callee.ok('call:reject', { toUserId: caller.userId });
    await caller.next('call:rejected');
    await dial(caller, callee, { callType: 'audio', withOffer: false });
    await hangUp(caller, callee);
    await callee.next('call:ended');
    await dial(caller, callee, { callType: 'video', withOffer: false });
    await callee.ok('call:busy', { toUserId: caller.userId });
    await caller.next('call:busy');
    await counted(server, before, {
      [ATTEMPTS]: { 'ringing audio': 2, 'ringing video': 1 },
      [ENDED]: { 'declined audio': 1, 'cancelled audio': 1, 'busy video': 1 },
      [RING]: { unanswered: 3 },
      switchboard_call_setup_seconds_count: {},
      switchboard_call_duration_seconds_count: {},
    });
  });

  test('of attempts that do not ring', async (t) => {
    const { server, before } = await serverFor(t);
    const { caller, callee } = await activeCall(t, server);
    const third = await join(t, server, { userId: someone('carol') });
    const to = (toUserId, more) => ({ toUserId, callType: 'audio', ...more });
    assertRefused(await third.ack('call:initiate', to(someone('nobody'))), 'RECIPIENT_OFFLINE');
    assertRefused(await third.ack('call:initiate', to(third.userId)), 'SELF_CALL');
    assert.equal((await third.ok('call:initiate', to(caller.userId))).reason, 'busy');
    assertRefused(await caller.ack('call:initiate', to(third.userId)), 'CALL_IN_PROGRESS');
    await hangUp(caller, callee);
    await callee.next('call:ended');
    const again = to(caller.userId, { clientCallId: 'try 1' });
    await third.ok('call:initiate', again);
    await third.ok('call:initiate', again);
    await caller.next('call:incoming');
    assertRefused(await caller.ack('call:initiate', to(third.userId)), 'GLARE');
    await counted(server, before, {
      [ATTEMPTS]: {
        'ringing video': 1, 'offline audio': 1, 'self_call audio': 1, 'busy audio': 1, 'call_in_progress audio': 1,
        'ringing audio': 1, 'repeated audio': 1, 'glare audio': 1,
      },
      [ENDED]: { 'offline audio': 1, 'busy audio': 1, 'completed video': 1 },
      switchboard_errors_total: { RECIPIENT_OFFLINE: 1, SELF_CALL: 1, CALL_IN_PROGRESS: 1, GLARE: 1 },
      switchboard_calls: { ringing: 1 },
    });
  });

  test('of calls that end by themselves or by an operator', async (t) => {
    const { server, before } = await serverFor(t, '--ring-timeout', '300ms', '--max-call-duration', '4s');
    const { caller, callee } = await ringing(t, server);
    await caller.next('call:ended');
    await callee.next('call:ended');
    await activeCall(t, server);
    const other = await activeCall(t, server);
    assert.equal((await post(server, `/v1/admin/calls/${other.callId}/end`)).status, 200);
    const after = await counted(server, before, {
      [ENDED]: { 'no_answer video': 1, 'max_duration video': 1, 'terminated video': 1 },
      switchboard_calls: {},
    });
    assert.ok(after.value('switchboard_sweep_calls_total', { found: 'overdue' }) >= 2);
    assert.ok(after.value('switchboard_sweep_lateness_seconds_count') >= 2);
    assert.ok(after.value('switchboard_sweeps_total') > 0);
  });

  test('of devices that are lost', async (t) => {
    const { server, before } = await serverFor(t, '--reconnect-grace', '2s');
    const { caller, callee } = await activeCall(t, server, { callee: { deviceId: 'phone' } });
    await callee.drop();
    await caller.next('call:peer-reconnecting');
    await counted(server, before, { switchboard_calls: { reconnecting: 1 }, switchboard_call_devices_lost_total: { '': 1 } });
    const back = await join(t, server, { userId: callee.userId, deviceId: 'phone' });
    await back.next('call:resumed');
    await caller.next('call:peer-reconnected');
    await counted(server, before, { switchboard_calls: { active: 1 }, switchboard_call_devices_returned_total: { '': 1 } });
    await back.drop();
    await caller.next('call:ended');
    // A late notification makes another version of the record, and no other end.
    const late = await join(t, server, { userId: callee.userId, deviceId: 'phone' });
    await late.next('call:ended');
    await counted(server, before, {
      [ENDED]: { 'connection_lost video': 1 },
      switchboard_call_devices_lost_total: { '': 2 },
      switchboard_sockets_closed_total: { transport: 2 },
    });
  });

  test('of what clients report of their media, as far as it can be', async (t) => {
    const { server, before } = await serverFor(t);
    const { caller, callId } = await activeCall(t, server);
    const report = (stats) => caller.ok('call:stats', { callId, ...stats });
    await report({ roundTripMs: 40, lossPercent: 2, jitterMs: 5, candidateType: 'srflx', iceState: 'connected' });
    await report({ roundTripMs: 1e300, lossPercent: 1e9, candidateType: 'relay', iceState: 'connected' });
    await report({ candidateType: 'pigeon', iceState: 'asleep' });
    await report({});
    const after = await counted(server, before, {
      switchboard_media_reports_total: { srflx: 1, relay: 1, unknown: 2 },
      switchboard_media_ice_states_total: { connected: 2, unknown: 1 },
      switchboard_media_round_trip_seconds_count: { direct: 1, relayed: 1 },
      switchboard_media_loss_ratio_count: { direct: 1, relayed: 1 },
      switchboard_media_jitter_seconds_count: { direct: 1 },
    });
    assert.equal(after.value('switchboard_media_round_trip_seconds_sum', { media: 'direct' }), 0.04);
    assert.equal(after.value('switchboard_media_loss_ratio_sum', { media: 'direct' }), 0.02);
    assert.equal(after.value('switchboard_media_loss_ratio_sum', { media: 'relayed' }), 1);
  });

  test('of clients that are let in, refused, or go too far', async (t) => {
    const { server, before } = await serverFor(t);
    await assert.rejects(join(t, server, { userId: '' }), /INVALID_PAYLOAD/);
    const client = await join(t, server, { userId: someone('anna') });
    assertRefused(await client.ack('call:nonsense', {}), 'INVALID_PAYLOAD');
    for (const first of [0, 400]) {
      const userIds = Array.from({ length: 400 }, (_, number) => `user-${first + number}`);
      await client.ack('presence:subscribe', { userIds });
    }
    await counted(server, before, {
      switchboard_connections_refused_total: { INVALID_PAYLOAD: 1 },
      switchboard_errors_total: { INVALID_PAYLOAD: 1, PAYLOAD_TOO_LARGE: 1 },
      switchboard_limits_hit_total: { watched: 1 },
      switchboard_client_messages_received_total: { 'ice:servers': 1, unknown: 1, 'presence:subscribe': 2 },
    });
  });
});
