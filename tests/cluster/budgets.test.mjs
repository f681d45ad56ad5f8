// The cost of presence requests, counted in the commands that Redis executes for them.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { describe, test } from 'node:test';
import { answer, dial, pair } from '../support/calls.mjs';
import { assertRefused, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { assertProblem, get } from '../support/http.mjs';
import { counted, scrape } from '../support/metrics.mjs';
import { startProxy } from '../support/proxy.mjs';

/** A cluster of `count` nodes with these limits only. */
async function limited(t, limits, count = 1) {
  const cluster = await startCluster(count, { args: ['--limits', ['off', ...limits].join()] });
  t.after(() => cluster.stop());
  return cluster;
}

/** The number of executions of each command while `work` runs. */
async function commandsOf({ redis }, work) {
  const before = (await redis.counted()).commands;
  await work();
  const after = (await redis.counted()).commands;
  return (name) => (after[name] ?? 0) - (before[name] ?? 0);
}

describe('what a client can make Redis do', { concurrency: true }, () => {
  test('by ending calls that it does not know: as much as its events allow', async (t) => {
    const cluster = await limited(t, ['events=20/1h']);
    const client = await join(t, cluster, { userId: someone('anna') });
    const end = (event) => client.ack(event, { toUserId: 'ben', callId: randomUUID() });
    const commands = await commandsOf(cluster, async () => {
      const answers = await Promise.all(Array.from({ length: 300 }, (_, number) => end(['call:end', 'call:reject', 'call:busy'][number % 3])));
      assertRefused(answers[0], 'NO_ACTIVE_CALL');
      assertRefused(answers.at(-1), 'RATE_LIMITED');
    });
    assert.ok(commands('hget') <= 30, `${commands('hget')} look-ups`);
  });

  test('by watching users again and again: nothing', async (t) => {
    const cluster = await limited(t, []);
    const userIds = Array.from({ length: 500 }, (_, number) => `user${number % 250}`);
    const [anna, ben] = [await join(t, cluster, { userId: someone('anna') }), await join(t, cluster, { userId: someone('ben') })];
    const scripts = await commandsOf(cluster, async () => {
      assert.equal(Object.keys((await anna.ok('presence:subscribe', { userIds })).presence).length, 250);
    });
    // Two scripts for 250 users, and the periodic work of an idle node.
    assert.ok(scripts('evalsha') <= 30, `${scripts('evalsha')} scripts for 250 users`);
    const again = await commandsOf(cluster, async () => {
      const answers = [anna, ben].flatMap((client) => Array.from({ length: 50 }, () => client.ok('presence:subscribe', { userIds })));
      for (const { presence } of await Promise.all(answers)) assert.equal(presence.user7, 'offline');
    });
    assert.ok(again('evalsha') <= 40, `${again('evalsha')} scripts for users that are watched already`);
    assert.ok(again('hset') <= 5 && again('hgetall') <= 10, 'nor is anything of users read or written');
    // Cached presence is kept up to date.
    await join(t, cluster, { userId: 'user7' });
    assert.equal((await anna.next('presence:update')).status, 'online');
    assert.equal((await ben.ok('presence:subscribe', { userIds: ['user7'] })).presence.user7, 'online');
  });

  test('by asking for the presence of others: so many ids of a user, on the socket and over HTTP', async (t) => {
    const cluster = await limited(t, ['presence-ids=1000/1h', 'address-presence-ids=800/1h', 'requests=5/1h', 'address-requests=9/1h']);
    const userId = someone('anna');
    const sockets = [await join(t, cluster, { userId }), await join(t, cluster, { userId })];
    const userIds = Array.from({ length: 500 }, () => 'ben');
    const before = await scrape(cluster);
    for (const socket of sockets) await socket.ok('presence:subscribe', { userIds });
    for (const socket of sockets) {
      const refused = await socket.ack('presence:subscribe', { userIds: ['ben'] });
      assertRefused(refused, 'RATE_LIMITED', { event: 'presence:subscribe' });
      assert.ok(refused.error.retryAfterMs > 1_000 && refused.error.retryAfterMs <= 3_600, JSON.stringify(refused));
    }
    const ask = (ids) => get(cluster, '/v1/presence', { userIds: ids.join() });
    assert.equal((await ask(userIds)).status, 200);
    const refused = await ask(userIds);
    assert.ok(Number(refused.headers.get('retry-after')) >= 1);
    await assertProblem(refused, 429);
    for (let count = 0; count < 7; count += 1) assert.equal((await ask(['ben'])).status, 200);
    await assertProblem(await ask(['ben']), 429);
    await assertProblem(await get(cluster, '/v1/calls', { userId }), 429);
    await counted(cluster, before, { switchboard_limits_hit_total: { presence_ids: 2, address_presence_ids: 1, address_requests: 2 } });
  });

  test('a socket that goes on asking for presence while it is refused is closed', async (t) => {
    const cluster = await limited(t, ['presence-ids=500/1h']);
    const client = await join(t, cluster, { userId: someone('anna') });
    const userIds = Array.from({ length: 500 }, (_, number) => `user${number}`);
    await client.ok('presence:subscribe', { userIds });
    const before = await scrape(cluster);
    const closed = new Promise((resolve) => client.socket.once('disconnect', resolve));
    let answers = 0;
    for (let count = 0; count < 150; count += 1) client.socket.emit('presence:subscribe', { userIds: ['ben'] }, () => (answers += 1));
    assert.equal(await closed, 'io server disconnect');
    assert.ok(answers <= 110, `${answers} answers`);
    await counted(cluster, before, { switchboard_limits_hit_total: { flood: 1, presence_ids: 101 } });
  });
});

describe('presence that Redis answers slowly', { concurrency: true }, () => {
  test('holds no call up, and of many requests refuses those that would wait too long', async (t) => {
    const redis = await startRedis();
    const proxy = await startProxy(redis.port);
    const cluster = await startCluster(1, { redis, redisUrl: `redis://127.0.0.1:${proxy.port}`, args: ['--limits', 'off'] });
    t.after(() => cluster.stop().finally(() => proxy.stop()));
    const watchers = await Promise.all(Array.from({ length: 40 }, (_, number) => join(t, cluster, { userId: someone(`watcher${number}`) })));
    const { caller, callee } = await pair(t, cluster);
    const userIds = Array.from({ length: 500 }, (_, number) => `user${number}`);
    const presence = await proxy.busiest(() => caller.ok('presence:subscribe', { userIds }));
    const before = await scrape(cluster);

    // Shorter than the time-out of a command; two of them take longer than a request waits for its turn.
    presence.delayMs = 600;
    let answered = 0;
    const answers = watchers.map(async (watcher, number) => {
      const answer = await watcher.ack('presence:subscribe', { userIds: [`other${number}`] });
      answered += answer.ok ? 1 : 0;
      return answer;
    });
    await dial(caller, callee);
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await caller.ok('call:end', { toUserId: callee.userId });
    assert.equal(answered, 0, 'a call is placed, answered and ended while presence waits for Redis');

    const refused = (await Promise.all(answers)).filter(({ ok }) => !ok);
    for (const one of refused) assertRefused(one, 'RATE_LIMITED', { event: 'presence:subscribe' });
    assert.equal(answered, 16);
    await counted(cluster, before, { switchboard_limits_hit_total: { presence_turns: refused.length } });
  });
});

describe('what a busy user costs those who watch', { concurrency: true }, () => {
  test('one message a second, the last of which is the truth', async (t) => {
    const cluster = await limited(t, [], 2);
    const { caller, callee } = await pair(t, cluster);
    const watchers = await Promise.all(Array.from({ length: 20 }, (_, number) => join(t, cluster, { userId: someone(`watcher${number}`) })));
    for (const watcher of watchers) await watcher.ok('presence:subscribe', { userIds: [caller.userId] });
    const sent = async () => (await scrape(cluster)).value('switchboard_client_messages_sent_total', { event: 'presence:update' });
    const [before, began] = [await sent(), Date.now()];
    for (let count = 0; count < 15; count += 1) {
      await dial(caller, callee, { withOffer: false });
      await caller.ok('call:end', { toUserId: callee.userId });
      await callee.next('call:ended');
    }
    caller.close();
    for (const watcher of watchers) await watcher.next('presence:update', ({ status }) => status === 'offline');
    const seconds = Math.ceil((Date.now() - began) / 1_000);
    const count = (await sent()) - before;
    assert.ok(count <= watchers.length * (seconds + 1), `${count} messages in ${seconds} s; 31 changes were there`);
    for (const watcher of watchers) {
      watcher.forget();
      await watcher.none('presence:update', { after: [callee] });
    }
  });
});
