// Three nodes behind HAProxy: stickiness, and the replacement of every node during calls.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answer, candidate, offer } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { startBalancer } from '../support/balancer.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';

const PAIRS = 12;
const byItself = { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 200, transports: ['websocket'] };

async function balanced(t) {
  const cluster = await startCluster(3, { args: ['--drain-window', '500ms'] });
  t.after(() => cluster.stop());
  const balancer = await startBalancer(cluster.nodes);
  t.after(() => balancer.stop());
  return { cluster, balancer };
}

async function call(t, balancer) {
  const caller = await join(t, balancer, { userId: someone('alice'), deviceId: 'a', ...byItself });
  const callee = await join(t, balancer, { userId: someone('bob'), deviceId: 'b', ...byItself });
  const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
  await caller.ok('call:offer', { toUserId: callee.userId, offer: offer() });
  await callee.next('call:offer');
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
  return { caller, callee, callId };
}

test('each node is replaced in turn and no call ends', async (t) => {
  const { cluster, balancer } = await balanced(t);
  const pairs = await Promise.all(Array.from({ length: PAIRS }, () => call(t, balancer)));
  const ended = [];
  for (const { caller, callee } of pairs) {
    for (const client of [caller, callee]) client.socket.on('call:ended', (event) => ended.push(event));
  }
  for (const node of cluster.nodes) {
    await node.restart();
    await eventually(
      async () => pairs.every(({ caller, callee }) => caller.socket.connected && callee.socket.connected),
      'all are connected again',
    );
  }
  for (const { caller, callee, callId } of pairs) {
    for (const client of [caller, callee]) {
      const { call: seen } = await client.ok('call:sync', {});
      assert.equal(seen?.callId, callId);
      assert.equal(seen.status, 'answered');
    }
    for (const [from, to, number] of [[caller, callee, 1], [callee, caller, 2], [caller, callee, 3]]) {
      await from.ok('call:ice-candidate', { toUserId: to.userId, candidate: candidate(number) });
      assert.deepEqual((await to.next('call:ice-candidate')).candidate, candidate(number));
    }
  }
  assert.deepEqual(ended, []);
});

test('a client on polling that keeps its cookie stays on its node', async (t) => {
  const { balancer } = await balanced(t);
  const opening = await fetch(`${balancer.url}/socket.io/?EIO=4&transport=polling`);
  const cookie = opening.headers.get('set-cookie').split(';')[0];
  assert.match(cookie, /^SIO_NODE=node\d$/);
  const { sid } = JSON.parse((await opening.text()).slice(1));
  const url = `${balancer.url}/socket.io/?EIO=4&transport=polling&sid=${sid}`;
  const headers = { cookie };
  assert.equal((await fetch(url, { method: 'POST', body: '40{"userId":"anna"}', headers })).status, 200);
  // The server's first ping may arrive before the reply.
  let received = '';
  await eventually(async () => {
    const response = await fetch(url, { headers });
    assert.equal(response.status, 200);
    received += await response.text();
    return received.includes('40{');
  }, 'CONNECT is answered on the same node');
});
