// Redis' time of day jumps during calls. The nodes' own clocks are always right.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, assertTalking, pickUp, ringing } from '../support/calls.mjs';
import { someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { movableTimeOfDay } from '../support/timeofday.mjs';

/** Two nodes on a Redis whose time of day can be moved. */
async function cluster(t) {
  const clock = await movableTimeOfDay();
  t.after(() => clock.stop());
  const nodes = await startCluster(2, { redis: await startRedis({ env: clock.env }) });
  t.after(() => nodes.stop());
  return { clock, nodes };
}

describe('Redis has another time of day', { concurrency: true }, () => {
  test('a node that starts after Redis was set ahead ends no call', async (t) => {
    const { clock, nodes } = await cluster(t);
    const { caller, callee, callId } = await ringing(t, nodes);
    await clock.move(60);
    const third = await nodes.addNode();
    const late = await join(t, third, { userId: callee.userId });
    assert.equal((await late.next('call:incoming')).callId, callId);
    await pickUp(callee, caller);
    await assertTalking(caller, callee);
    await caller.none('call:ended');
  });

  test('after Redis was set back, a dead node is evicted as soon as ever', async (t) => {
    const { clock, nodes } = await cluster(t);
    const options = { caller: { deviceId: someone('laptop') }, callee: { deviceId: someone('phone') } };
    const { caller, callee } = await activeCall(t, nodes, options);
    await clock.move(-120);
    const calleesNode = nodes.nodes.find(({ port }) => callee.socket.io.uri.endsWith(`:${port}`));
    const callersNode = nodes.nodes.find((node) => node !== calleesNode);
    await calleesNode.kill('SIGKILL');
    await caller.next('call:peer-reconnecting', undefined, 40_000);
    assert.match(callersNode.logs(), /Redis has another time of day/);
  });
});
