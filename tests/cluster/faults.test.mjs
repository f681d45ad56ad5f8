// Several nodes on one Redis: the effect of a node's death or stop, and of Redis failures, on calls.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { answer, candidate, candidates, offer } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { rawSocket } from '../support/raw.mjs';
import { Server } from '../support/server.mjs';

async function cluster(t, count, options) {
  const started = await startCluster(count, options);
  t.after(() => started.stop());
  return started;
}

/** A call between devices on these two nodes, answered. */
async function callAcross(t, callersNode, calleesNode) {
  const caller = await join(t, callersNode, { userId: someone('alice'), deviceId: 'a', reconnection: false });
  const callee = await join(t, calleesNode, { userId: someone('bob'), deviceId: 'b', reconnection: false });
  const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'video' });
  await caller.ok('call:offer', { toUserId: callee.userId, offer: offer() });
  await callee.next('call:incoming');
  await callee.next('call:offer');
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
  return { caller, callee, callId };
}

async function assertTalking(one, other) {
  for (const [from, to] of [[one, other], [other, one]]) {
    const sent = candidate(Math.floor(Math.random() * 1e6));
    await from.ok('call:ice-candidate', { toUserId: to.userId, candidate: sent });
    assert.deepEqual((await to.next('call:ice-candidate')).candidate, sent);
  }
}

describe('a node', { concurrency: true }, () => {
  test('that is killed takes only its own sockets along: the device carries on elsewhere', async (t) => {
    const { nodes } = await cluster(t, 3);
    const { caller, callee, callId } = await callAcross(t, nodes[0], nodes[1]);
    await nodes[1].kill('SIGKILL');
    const again = await join(t, nodes[2], { userId: callee.userId, deviceId: 'b' });
    assert.equal((await again.next('call:resumed')).callId, callId);
    // Its message tells the caller's node where the device is now.
    await assertTalking(again, caller);
    const { call } = await caller.ok('call:sync', { callId });
    assert.equal(call.status, 'answered');
  });

  test('that is killed loses nothing that is sent while its device is on the way elsewhere', async (t) => {
    const { nodes } = await cluster(t, 3);
    const { caller, callee } = await callAcross(t, nodes[0], nodes[1]);
    await nodes[1].kill('SIGKILL');
    const sent = candidates(40);
    const send = (some) => some.forEach((one) => caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one }));
    send(sent.slice(0, 20));
    await caller.fence();
    const again = await join(t, nodes[2], { userId: callee.userId, deviceId: 'b' });
    send(sent.slice(20));
    const received = [];
    while (received.length < sent.length) received.push((await again.next('call:ice-candidate')).candidate);
    assert.deepEqual(received, sent);
  });

  test('that is killed leaves its users offline: for callers at once, for watchers soon', async (t) => {
    const { nodes } = await cluster(t, 2);
    const callee = await join(t, nodes[1], { userId: someone('bob'), reconnection: false });
    const caller = await join(t, nodes[0], { userId: someone('alice') });
    await caller.ok('presence:subscribe', { userIds: [callee.userId] });
    await nodes[1].kill('SIGKILL');
    const refused = await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    assert.equal(refused.error?.type, 'RECIPIENT_OFFLINE');
    // A missing heartbeat is noticed later than one event is awaited.
    const offline = () => caller.ack('presence:subscribe', { userIds: [callee.userId] });
    await eventually(async () => (await offline()).presence[callee.userId] === 'offline', 'offline', 15_000);
  });

  test('that is told to leave hands its calls over and exits cleanly', async (t) => {
    const { nodes } = await cluster(t, 2);
    const { caller, callee, callId } = await callAcross(t, nodes[0], nodes[1]);
    const goodbye = callee.next('server:draining');
    const left = nodes[1].stop();
    assert.ok((await goodbye).reconnectWithinMs > 0);
    assert.notEqual(await callee.next('disconnect'), 'io server disconnect');
    assert.equal((await caller.next('call:peer-reconnecting')).callId, callId);
    const again = await join(t, nodes[0], { userId: callee.userId, deviceId: 'b' });
    assert.equal((await again.next('call:resumed')).callId, callId);
    await caller.next('call:peer-reconnected');
    await left;
    await assertTalking(caller, again);
  });

  test('that is told to leave takes nobody in on a connection that was opened just before', async (t) => {
    const { nodes, redis } = await cluster(t, 2);
    const known = await join(t, nodes[1], { userId: someone('bob') });
    const late = someone('dan');
    const opened = await Promise.all(Array.from({ length: 20 }, () => rawSocket(t, nodes[1], { joins: false })));
    const goodbye = known.next('server:draining');
    const left = nodes[1].stop();
    await goodbye;
    for (const raw of opened) raw.send(`40${JSON.stringify({ userId: late })}`);
    await left;
    for (const raw of opened) {
      await raw.closed;
      assert.deepEqual(raw.frames.filter((text) => text.startsWith('40')), [], 'it was not let in');
    }
    assert.deepEqual((await redis.keys()).filter((key) => key.includes(late)), []);
  });

  test('that was taken for dead finds out and joins again', async (t) => {
    const { nodes } = await cluster(t, 2);
    const callee = await join(t, nodes[1], { userId: someone('bob') });
    const caller = await join(t, nodes[0], { userId: someone('alice') });
    const presence = async () =>
      (await caller.ok('presence:subscribe', { userIds: [callee.userId] })).presence[callee.userId];
    process.kill(nodes[1].pid, 'SIGSTOP');
    try {
      await eventually(async () => (await presence()) === 'offline', 'taken for dead', 15_000);
    } finally {
      process.kill(nodes[1].pid, 'SIGCONT');
    }
    await eventually(async () => (await presence()) === 'online', 'back', 10_000);
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await callee.next('call:incoming');
  });
});

test('a burst from one node arrives at the other complete and in order', async (t) => {
  const { nodes } = await cluster(t, 2);
  const { caller, callee } = await callAcross(t, nodes[0], nodes[1]);
  const sent = candidates(500);
  for (const one of sent) caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one });
  const received = [];
  while (received.length < sent.length) received.push((await callee.next('call:ice-candidate')).candidate);
  assert.deepEqual(received, sent);
});

describe('Redis', { concurrency: true }, () => {
  test('that cuts the subscriptions off loses, doubles or reorders nothing', async (t) => {
    const { nodes, redis } = await cluster(t, 2);
    const { caller, callee } = await callAcross(t, nodes[0], nodes[1]);
    const sent = candidates(600);
    for (const [index, one] of sent.entries()) {
      caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one });
      if (index % 200 === 100) {
        await caller.fence();
        await eventually(() => redis.cutSubscriptions(), 'there are subscriptions to cut');
      }
    }
    const received = await callee.nextFew('call:ice-candidate', sent.length);
    assert.deepEqual(received.map((one) => one.candidate), sent);
  });

  test('frozen for 5 s delays candidates and loses, doubles or reorders none', async (t) => {
    const { nodes, redis } = await cluster(t, 2);
    const { caller, callee } = await callAcross(t, nodes[0], nodes[1]);
    const sent = candidates(300);
    const send = (some) => some.forEach((one) => caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one }));
    process.kill(redis.pid, 'SIGSTOP');
    const thawed = new Promise((resolve) => setTimeout(() => resolve(process.kill(redis.pid, 'SIGCONT')), 5_000));
    send(sent.slice(0, 100));
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    send(sent.slice(100, 200));
    await thawed;
    send(sent.slice(200));
    const received = [];
    while (received.length < sent.length) received.push((await callee.next('call:ice-candidate')).candidate);
    assert.deepEqual(received, sent);
    await assertTalking(caller, callee);
  });

  test('back empty: calls go on, users are online, and new calls work', async (t) => {
    const { nodes, redis } = await cluster(t, 2);
    const { caller, callee, callId } = await callAcross(t, nodes[0], nodes[1]);
    const watcher = await join(t, nodes[0], { userId: someone('carol') });
    await redis.restart();
    await eventually(async () => {
      const { ok, call } = await caller.ack('call:sync', {});
      return ok && call?.callId === callId;
    }, 'the record is back');
    await assertTalking(caller, callee);
    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
    await eventually(async () => {
      const { ok, presence } = await watcher.ack('presence:subscribe', { userIds: [callee.userId] });
      return ok && presence[callee.userId] === 'online';
    }, 'the callee is known');
    await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await callee.next('call:incoming');
  });

  test('back with what it knew some time ago, after a while of loading it: who came since is online', async (t) => {
    const redis = await startRedis({ args: ['--enable-debug-command', 'local'] });
    const { nodes } = await cluster(t, 2, { redis });
    await redis.saveMuch();
    const callee = await join(t, nodes[1], { userId: someone('bob') });
    const caller = await join(t, nodes[0], { userId: someone('alice') });
    await redis.restart();
    const initiate = () => caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await eventually(async () => (await initiate()).ok, 'the callee is known again');
    await callee.next('call:incoming');
  });

  test('back with an older record of a live call: the call goes on as its devices know it', async (t) => {
    const redis = await startRedis({ args: ['--enable-debug-command', 'local'] });
    const { nodes } = await cluster(t, 2, { redis, args: ['--ring-timeout', '4s'] });
    const caller = await join(t, nodes[0], { userId: someone('alice'), deviceId: 'a' });
    const callee = await join(t, nodes[1], { userId: someone('bob'), deviceId: 'b' });
    const { callId, expiresAt } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await callee.next('call:incoming');
    await redis.saveMuch();
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await caller.next('call:answer');
    await redis.restart();
    // The restored record alone would have stopped ringing by now.
    await eventually(() => Date.now() > expiresAt + 1_000, 'the ringing time is over');
    await eventually(async () => (await caller.ack('call:sync', { callId })).call?.status === 'answered', 'the record is back');
    await assertTalking(caller, callee);
    await caller.ok('call:end', { toUserId: callee.userId, callId });
    assert.equal((await callee.next('call:ended')).reason, 'completed');
  });

  test('away: new calls are refused for now, live ones go on', async (t) => {
    const { nodes, redis } = await cluster(t, 1);
    const { caller, callee } = await callAcross(t, nodes[0], nodes[0]);
    const other = await join(t, nodes[0], { userId: someone('carol') });
    process.kill(redis.pid, 'SIGSTOP');
    try {
      const refused = await other.ack('call:initiate', { toUserId: someone('dan'), callType: 'audio' });
      assert.equal(refused.error?.type, 'TEMPORARILY_UNAVAILABLE');
      assert.ok(refused.error.retryAfterMs > 0);
      await assertTalking(caller, callee);
    } finally {
      process.kill(redis.pid, 'SIGCONT');
    }
    await eventually(async () => {
      const later = await other.ack('call:initiate', { toUserId: someone('dan'), callType: 'audio' });
      return later.error?.type === 'RECIPIENT_OFFLINE';
    }, 'calls are decided again');
  });

  test('away while a device leaves and another comes: both are noted when it is back', async (t) => {
    const { nodes, redis } = await cluster(t, 1);
    const { caller, callee, callId } = await callAcross(t, nodes[0], nodes[0]);
    process.kill(redis.pid, 'SIGSTOP');
    const thaw = setTimeout(() => process.kill(redis.pid, 'SIGCONT'), 4_000);
    t.after(() => clearTimeout(thaw));
    callee.close();
    const joining = join(t, nodes[0], { userId: someone('carol'), reconnection: true, reconnectionDelay: 200, reconnectionDelayMax: 500 });
    assert.equal((await caller.next('call:ended')).callId, callId);
    await joining;
  });

  test('away while a device tries to join and gives up: it is not online when Redis is back', async (t) => {
    const { nodes, redis } = await cluster(t, 1);
    const watcher = await join(t, nodes[0], { userId: someone('carol') });
    const [gone, brief] = [someone('dan'), someone('erin')];
    process.kill(redis.pid, 'SIGSTOP');
    for (const userId of [gone, brief]) {
      const attempt = connect(t, nodes[0], { auth: { userId } });
      await attempt.next('disconnect');
      attempt.close();
    }
    process.kill(redis.pid, 'SIGCONT');
    await eventually(async () => (await watcher.ack('call:sync', {})).ok, 'Redis is back');
    (await join(t, nodes[0], { userId: brief })).close();
    const isOffline = async () => {
      const { ok, presence } = await watcher.ack('presence:subscribe', { userIds: [gone, brief] });
      return ok && presence[gone] === 'offline' && presence[brief] === 'offline';
    };
    await eventually(isOffline, 'both are offline');
  });

  test('back empty: who left while it was away, beside many who stayed, is offline', async (t) => {
    const { nodes, redis } = await cluster(t, 2);
    const enter = (userId) => rawSocket(t, nodes[1], { userId, deviceId: 'd' });
    const stayed = Array.from({ length: 150 }, () => someone('bob'));
    const gone = Array.from({ length: 20 }, () => someone('dan'));
    await Promise.all(stayed.map(enter));
    const leaving = await Promise.all(gone.map(enter));
    const watcher = await join(t, nodes[0], { userId: someone('carol') });
    await redis.halt();
    leaving.forEach((raw) => raw.destroy());
    await redis.start();
    const isRight = async () => {
      const { presence } = await watcher.ack('presence:subscribe', { userIds: [...stayed, ...gone] });
      const are = (users, status) => users.every((userId) => presence?.[userId] === status);
      return are(stayed, 'online') && are(gone, 'offline');
    };
    await eventually(isRight, 'who stayed is online, and who left is not');
  });

  test('that is not there when a node starts is waited for', async (t) => {
    const redis = await startRedis();
    await redis.stop();
    const starting = Server.create(['--redis-url', redis.url], { SWITCHBOARD_DRAIN_WINDOW: '100ms' });
    const later = await startRedis({ port: redis.port });
    t.after(() => later.stop());
    const server = await starting;
    t.after(() => server.stop());
    await join(t, server, { userId: someone('alice') });
  });
});

test('nothing is left in Redis of a node that died and of users who are gone', async (t) => {
  const { nodes, redis } = await cluster(t, 2);
  const gone = await join(t, nodes[1], { userId: someone('bob'), reconnection: false });
  const watcher = await join(t, nodes[1], { userId: someone('carol'), reconnection: false });
  await watcher.ok('presence:subscribe', { userIds: [gone.userId, someone('stranger')] });
  const left = await join(t, nodes[0], { userId: someone('dan') });
  assert.ok((await redis.keys()).some((key) => key.includes(gone.userId)));
  await nodes[1].kill('SIGKILL');
  left.close();
  await eventually(async () => {
    const keys = (await redis.keys()).map((key) => key.split(':').at(2));
    return keys.every((kind) => ['nodes', 'deadlines', 'clock'].includes(kind));
  }, 'only what lives is left', 30_000);
});
