// Presence: online, busy, offline, and one notification per change.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { dial, pickUp, ringing } from '../support/calls.mjs';
import { assertRefused, assertShape, isNow, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

const watcher = (t) => join(t, server, { userId: someone('watcher') });

async function subscribe(client, ...userIds) {
  const reply = await client.ack('presence:subscribe', { userIds });
  assertShape(reply, { ok: true, presence: () => true });
  return reply.presence;
}

/** The next presence update about this user. */
async function status(client, userId) {
  const update = await client.next('presence:update', (one) => one.userId === userId);
  assertShape(update, { userId, status: (word) => ['online', 'busy', 'offline'].includes(word), timestamp: isNow });
  return update.status;
}

describe('presence', { concurrency: true }, () => {
  test('the answer tells how things are', async (t) => {
    const { caller, callee } = await ringing(t, server);
    await pickUp(callee, caller);
    const idle = await join(t, server, { userId: someone('idle') });
    const nobody = someone('nobody');
    const eve = await watcher(t);
    assert.deepEqual(await subscribe(eve, caller.userId, callee.userId, idle.userId, nobody, eve.userId), {
      [caller.userId]: 'busy',
      [callee.userId]: 'busy',
      [idle.userId]: 'online',
      [nobody]: 'offline',
      [eve.userId]: 'online',
    });
    assert.deepEqual(await subscribe(eve), {}, 'nobody asked for');
  });

  test('every edge is told once: online, busy, online, offline', async (t) => {
    const eve = await watcher(t);
    const aliceId = someone('alice');
    const bobId = someone('bob');
    assert.deepEqual(await subscribe(eve, aliceId, bobId), { [aliceId]: 'offline', [bobId]: 'offline' });

    const alice = await join(t, server, { userId: aliceId });
    const bob = await join(t, server, { userId: bobId });
    for (const userId of [aliceId, bobId]) assert.equal(await status(eve, userId), 'online');

    await dial(alice, bob);
    await pickUp(bob, alice);
    for (const userId of [aliceId, bobId]) assert.equal(await status(eve, userId), 'busy');
    assert.deepEqual(await subscribe(eve, aliceId, bobId), { [aliceId]: 'busy', [bobId]: 'busy' });

    await alice.ok('call:end', { toUserId: bobId });
    for (const userId of [aliceId, bobId]) assert.equal(await status(eve, userId), 'online');

    alice.close();
    assert.equal(await status(eve, aliceId), 'offline');
    await eve.nothingElse({ after: [bob] });
  });

  test('a user with two devices is online until the last has left', async (t) => {
    const eve = await watcher(t);
    const userId = someone('alice');
    await subscribe(eve, userId);
    const phone = await join(t, server, { userId, deviceId: 'phone' });
    const tablet = await join(t, server, { userId, deviceId: 'tablet' });
    assert.equal(await status(eve, userId), 'online');
    phone.close();
    await tablet.fence();
    await eve.none('presence:update', { after: [tablet] });
    tablet.close();
    assert.equal(await status(eve, userId), 'offline');
    await eve.nothingElse();
  });

  test('a call that was never answered makes its parties busy only while it lives', async (t) => {
    const eve = await watcher(t);
    const { caller, callee } = await ringing(t, server);
    assert.deepEqual(await subscribe(eve, caller.userId, callee.userId), { [caller.userId]: 'busy', [callee.userId]: 'busy' });
    await callee.ok('call:reject', { toUserId: caller.userId });
    for (const { userId } of [caller, callee]) assert.equal(await status(eve, userId), 'online');
    await eve.nothingElse({ after: [caller, callee] });
  });

  test('a call to a busy or offline user makes nobody busy for long', async (t) => {
    const eve = await watcher(t);
    const alice = await join(t, server, { userId: someone('alice') });
    await subscribe(eve, alice.userId);
    assertRefused(await alice.ack('call:initiate', { toUserId: someone('nobody'), callType: 'audio' }), 'RECIPIENT_OFFLINE');
    assert.deepEqual(await subscribe(eve, alice.userId), { [alice.userId]: 'online' });
  });

  test('unsubscribe ends it, for the users named', async (t) => {
    const eve = await watcher(t);
    const [kept, dropped] = [someone('kept'), someone('dropped')];
    await subscribe(eve, kept, dropped);
    assertShape(await eve.ack('presence:unsubscribe', { userIds: [dropped, someone('never-watched')] }), { ok: true });
    await join(t, server, { userId: dropped });
    await join(t, server, { userId: kept });
    assert.equal(await status(eve, kept), 'online');
    await eve.nothingElse();
  });

  test('subscribing again tells nothing twice', async (t) => {
    const eve = await watcher(t);
    const userId = someone('alice');
    await subscribe(eve, userId, userId);
    await subscribe(eve, userId);
    await join(t, server, { userId });
    assert.equal(await status(eve, userId), 'online');
    await eve.nothingElse();
  });

  test('several watchers, each for itself; one that has left does not matter', async (t) => {
    const watchers = [await watcher(t), await watcher(t), await watcher(t)];
    const userId = someone('alice');
    for (const one of watchers) await subscribe(one, userId);
    watchers[0].close();
    await watchers[1].ok('presence:unsubscribe', { userIds: [userId] });
    await join(t, server, { userId });
    assert.equal(await status(watchers[2], userId), 'online');
    await watchers[1].nothingElse({ after: [watchers[2]] });
  });

  test('500 users may be watched, not more', async (t) => {
    const eve = await watcher(t);
    const crowd = Array.from({ length: 500 }, (_, index) => someone(`user${index}`));
    assert.equal(Object.keys(await subscribe(eve, ...crowd)).length, 500);
    const more = await eve.ack('presence:subscribe', { userIds: [...crowd, someone('one-more')] });
    assertRefused(more, 'PAYLOAD_TOO_LARGE', { mentions: ['userIds', '500'], event: 'presence:subscribe' });
    const beyond = await eve.ack('presence:subscribe', { userIds: [someone('beyond')] });
    assertRefused(beyond, 'PAYLOAD_TOO_LARGE', { mentions: '500' });
    await eve.ok('presence:unsubscribe', { userIds: crowd.slice(0, 1) });
    await subscribe(eve, someone('fits-again'));
    const watched = await join(t, server, { userId: crowd[499] });
    assert.equal(await status(eve, watched.userId), 'online');
  });
});
