// One node is cut off from Redis, the others are not.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { assertTalking, candidates, dial, pickUp } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';
import { startProxy } from '../support/proxy.mjs';

/** Longer than the time until a silent node is evicted. */
const DEATH_MS = 20_000;

/** Nodes on one Redis, the last of them through a proxy. */
async function clusterWithProxy(t, count, options) {
  const cluster = await startCluster(count - 1, options);
  t.after(() => cluster.stop());
  const proxy = await startProxy(cluster.redis.port);
  t.after(() => proxy.stop());
  await cluster.addNode({ ...options, redisUrl: `redis://127.0.0.1:${proxy.port}` });
  return { nodes: cluster.nodes, proxy };
}

const device = (t, node, name) => join(t, node, { userId: someone(name), deviceId: name });

async function call(caller, callee) {
  const { callId } = await dial(caller, callee);
  await pickUp(callee, caller);
  return callId;
}

function send(from, to, some) {
  for (const one of some) from.emit('call:ice-candidate', { toUserId: to.userId, candidate: one });
}

/** All of these arrive in this order, each once. */
async function assertArrive(client, sent) {
  const received = await client.nextFew('call:ice-candidate', sent.length, 20_000);
  assert.deepEqual(received.map((event) => event.candidate), sent);
  await client.none('call:ice-candidate');
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

for (const [trouble, how] of [['resets', 'cut'], ['silence', 'freeze']]) {
  describe(`a node cut off by ${trouble}`, { concurrency: true }, () => {
    test('for a moment: candidates are late, and none is lost, doubled or out of order', async (t) => {
      const { nodes, proxy } = await clusterWithProxy(t, 2);
      const [anna, ben] = [await device(t, nodes[0], 'anna'), await device(t, nodes[1], 'ben')];
      await call(anna, ben);
      const [there, back] = [candidates(90), candidates(90, 1_000)];
      for (const third of [0, 30, 60]) {
        if (third === 30) proxy[how]();
        send(anna, ben, there.slice(third, third + 30));
        send(ben, anna, back.slice(third, third + 30));
        await pause(third === 30 ? 3_000 : 0);
        if (third === 30) proxy.heal();
      }
      await assertArrive(ben, there);
      await assertArrive(anna, back);
      await assertTalking(anna, ben);
    });

    test('until it is taken for dead: its calls carry on when it is back', async (t) => {
      const { nodes, proxy } = await clusterWithProxy(t, 3, { env: { SWITCHBOARD_RECONNECT_GRACE: '2m' } });
      const [anna, ben] = [await device(t, nodes[0], 'anna'), await device(t, nodes[1], 'ben')];
      const [carl, dora] = [await device(t, nodes[2], 'carl'), await device(t, nodes[2], 'dora')];
      const [emil, fred] = [await device(t, nodes[0], 'emil'), await device(t, nodes[2], 'fred')];
      const gina = await device(t, nodes[2], 'gina');
      await call(anna, ben);
      await call(carl, dora);
      await call(emil, fred);
      const presence = async (user) => (await anna.ok('presence:subscribe', { userIds: [user.userId] })).presence[user.userId];

      proxy[how]();
      const [there, back] = [candidates(20), candidates(20, 1_000)];
      send(emil, fred, there);
      send(fred, emil, back);
      assertRefused(await gina.ack('call:initiate', { toUserId: anna.userId, callType: 'audio' }), 'TEMPORARILY_UNAVAILABLE');
      await eventually(async () => (await presence(gina)) === 'offline', 'the node is taken for dead', DEATH_MS);
      await emil.next('call:peer-reconnecting');
      await assertTalking(anna, ben);
      await assertTalking(carl, dora);
      await call(await device(t, nodes[0], 'hans'), await device(t, nodes[1], 'ida'));

      proxy.heal();
      await eventually(async () => (await presence(gina)) === 'online', 'its users are online again');
      await emil.next('call:peer-reconnected');
      await assertArrive(fred, there);
      await assertArrive(emil, back);
      await assertTalking(emil, fred);
      await assertTalking(carl, dora);
      await call(await device(t, nodes[1], 'jane'), gina);
      for (const client of [anna, ben, carl, dora, emil, fred]) await client.none('call:ended');
    });

    test('until its calls are over: their clients are told so, and can call again', async (t) => {
      const { nodes, proxy } = await clusterWithProxy(t, 2, { env: { SWITCHBOARD_RECONNECT_GRACE: '500ms' } });
      const [anna, ben] = [await device(t, nodes[0], 'anna'), await device(t, nodes[1], 'ben')];
      const [carl, dora] = [await device(t, nodes[1], 'carl'), await device(t, nodes[1], 'dora')];
      const [across, local] = [await call(anna, ben), await call(carl, dora)];

      proxy[how]();
      assert.equal((await anna.next('call:ended', undefined, DEATH_MS)).reason, 'connection_lost');
      await assertTalking(carl, dora);

      proxy.heal();
      for (const [client, callId] of [[ben, across], [carl, local], [dora, local]]) {
        assert.equal((await client.next('call:ended')).callId, callId);
      }
      await eventually(async () => (await anna.ok('presence:subscribe', { userIds: [ben.userId] })).presence[ben.userId] === 'online', 'back');
      await call(anna, ben);
      await call(carl, dora);
    });
  });
}

test('when all nodes were cut off, the first that is back does not take the others for dead', async (t) => {
  const cluster = await startCluster(0);
  t.after(() => cluster.stop());
  const proxies = [];
  for (let number = 0; number < 2; number += 1) {
    const proxy = await startProxy(cluster.redis.port);
    t.after(() => proxy.stop());
    proxies.push(proxy);
    await cluster.addNode({ redisUrl: `redis://127.0.0.1:${proxy.port}` });
  }
  const [anna, ben] = [await device(t, cluster.nodes[0], 'anna'), await device(t, cluster.nodes[1], 'ben')];
  await call(anna, ben);
  const isDecided = async () => (await anna.ack('call:sync', {})).ok;

  for (const proxy of proxies) proxy.cut();
  // Longer than a node may be silent.
  await pause(11_000);
  proxies[0].heal();
  await eventually(isDecided, 'the first node is back');
  await pause(1_000);
  proxies[1].heal();
  const sent = candidates(3);
  send(anna, ben, sent);
  await assertArrive(ben, sent);
  await assertTalking(anna, ben);
  for (const client of [anna, ben]) await client.none('call:peer-reconnecting');
  for (const node of cluster.nodes) assert.ok(!node.logs().includes('a node is dead'), node.logs());
});
