// The node's byte budget: the clients that are refused or disconnected when it is exhausted, and those that are not.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, answer, assertCallsWork, assertTalking, dial, pair } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { scrape } from '../support/metrics.mjs';
import { rawSocket } from '../support/raw.mjs';
import { ONE_NODE, startServer } from '../support/server.mjs';

const MIB = 1024 * 1024;
const large = { type: 'offer', sdp: 'x'.repeat(60_000) };

async function withBudget(t, budget) {
  const server = await startServer({ args: ['--limits', `off,buffers=${budget}`] });
  t.after(() => server.stop());
  return server;
}

const buffered = async (server, buffer) => (await scrape(server)).value('switchboard_buffered_bytes', { buffer });

describe('the byte budget', { concurrency: true, ...ONE_NODE }, () => {
  test('is given back by clients that read, and by calls that end', async (t) => {
    const server = await withBudget(t, '4MiB');
    const { caller, callee } = await pair(t, server);
    await dial(caller, callee);
    for (let count = 0; count < 5; count += 1) {
      await caller.ok('call:offer', { toUserId: callee.userId, offer: large });
      await callee.next('call:offer');
    }
    assert.ok((await buffered(server, 'calls')) > 5 * 60_000);
    await caller.ok('call:end', { toUserId: callee.userId });
    await eventually(async () => (await buffered(server, 'calls')) === 0, 'what was kept for late devices is gone');
    await eventually(async () => (await buffered(server, 'clients')) === 0, 'all has been read');
    assert.equal(await buffered(server, 'inboxes'), 0);
    assert.equal((await scrape(server)).value('switchboard_buffer_budget_bytes'), 4 * MIB);
  });

  test('refuses the calls that keep the most, and no other', async (t) => {
    const server = await withBudget(t, '4MiB');
    const lasting = await activeCall(t, server);
    const before = await scrape(server);
    let refused;
    for (let count = 0; count < 8; count += 1) {
      const { caller, callee } = await pair(t, server);
      await dial(caller, callee);
      const answers = await Promise.all(Array.from({ length: 15 }, () => caller.ack('call:offer', { toUserId: callee.userId, offer: large })));
      refused = answers.find(({ ok }) => !ok) ?? refused;
      const used = await buffered(server, 'calls');
      assert.ok(used < 4 * MIB, `${used}`);
    }
    assertRefused(refused, 'RATE_LIMITED', { event: 'call:offer' });
    assert.ok(refused.error.retryAfterMs > 0 && refused.error.retryAfterMs <= 1_000, JSON.stringify(refused));
    const hits = (await scrape(server)).byLabels('switchboard_limits_hit_total', before);
    assert.ok(hits.buffers > 0, JSON.stringify(hits));
    await assertTalking(lasting.caller, lasting.callee);
    await assertCallsWork(t, server);
  });

  test('cuts off those that read the slowest, who may come back; other calls go on', async (t) => {
    const server = await withBudget(t, '4MiB');
    const lasting = await activeCall(t, server);
    const before = await scrape(server);
    const stuck = await Promise.all(
      Array.from({ length: 5 }, async () => {
        const caller = await join(t, server, { userId: someone('alice'), deviceId: 'laptop' });
        const callee = await rawSocket(t, server, { userId: someone('stuck'), deviceId: 'phone' });
        await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
        await callee.ack('call:answer', { toUserId: caller.userId, answer: answer() });
        await caller.next('call:answer');
        callee.stopReading();
        return { caller, callee };
      }),
    );
    const cut = async () => (await scrape(server)).byLabels('switchboard_slow_clients_closed_total', before).budget ?? 0;
    // All at the same pace, so that none of them reaches its own bound first.
    for (let count = 0; count < 600 && (count % 20 || (await cut()) === 0); count += 1) {
      await Promise.all(stuck.map(({ caller, callee }) => caller.ack('call:offer', { toUserId: callee.userId, offer: large })));
    }
    await eventually(async () => (await cut()) > 0, 'some are cut off');
    const closed = (await scrape(server)).byLabels('switchboard_slow_clients_closed_total', before);
    assert.equal(closed.queue, undefined, JSON.stringify(closed));
    assert.ok(closed.budget < 5, JSON.stringify(closed));
    const lost = await Promise.any(stuck.map(({ caller }) => caller.next('call:peer-reconnecting').then(() => caller)));
    const { call } = await lost.ok('call:sync', {});
    assert.equal(call.status, 'answered', 'the call waits for its device');
    await assertTalking(lasting.caller, lasting.callee);
    await assertCallsWork(t, server);
  });

  test('counts messages that clients begin and do not complete, and cuts off those that hold the most', async (t) => {
    const server = await withBudget(t, '4MiB');
    const lasting = await activeCall(t, server);
    const before = await scrape(server);
    const begin = async (bytes) => {
      const client = await rawSocket(t, server, { userId: someone('slow'), deviceId: 'phone' });
      client.ws.send(`42["call:offer","${'x'.repeat(bytes)}`, { fin: false });
      return client;
    };
    const first = await begin(100_000);
    await eventually(async () => (await buffered(server, 'frames')) >= 100_000, 'the unfinished message is counted');
    first.ws.send('"]', { fin: true });
    await eventually(async () => (await buffered(server, 'frames')) === 0, 'a complete message is not');
    await Promise.all(Array.from({ length: 36 }, (_, index) => begin(index < 4 ? 150_000 : 110_000)));
    await eventually(async () => (await scrape(server)).byLabels('switchboard_slow_clients_closed_total', before).budget > 0, 'some are cut off');
    await eventually(async () => (await buffered(server, 'frames')) < 4 * MIB * (7 / 8), 'the rest fits');
    await assertTalking(lasting.caller, lasting.callee);
    await assertCallsWork(t, server);
  });
});
