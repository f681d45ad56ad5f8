// Edge cases between transports: broken and duplicate upgrades, attempts to bypass the guarded websocket, and
// disconnects.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import WebSocket from 'ws';
import { assertCallsWork, ringing } from '../support/calls.mjs';
import { eventually, someone, within } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { rawSocket, tcp } from '../support/raw.mjs';
import { startServer } from '../support/server.mjs';

let server;
before(async () => {
  server = await startServer();
});
after(() => server.stop());

const polling = (sid = '') => `${server.url}/socket.io/?EIO=4&transport=polling${sid && `&sid=${sid}`}`;

/** A session on polling that has joined as `userId`. */
async function pollingSession(userId) {
  const { sid } = JSON.parse((await (await fetch(polling())).text()).slice(1));
  await fetch(polling(sid), { method: 'POST', body: `40${JSON.stringify({ userId })}` });
  let received = '';
  while (!received.includes('40{')) received += await (await fetch(polling(sid))).text();
  return sid;
}

function upgrade(sid) {
  const url = `ws://127.0.0.1:${server.port}/socket.io/?EIO=4&transport=websocket&sid=${sid}`;
  const ws = new WebSocket(url, { perMessageDeflate: false });
  ws.on('error', () => {});
  const opened = new Promise((resolve) => ws.once('open', () => resolve(true)));
  const refused = new Promise((resolve) => ws.once('unexpected-response', (_, response) => resolve(response.statusCode)));
  return { ws, opened, refused };
}

describe('an upgrade', { concurrency: true }, () => {
  for (const [when, begin] of Object.entries({
    'before the probe': async () => {},
    'after the probe': async (ws) => {
      const pong = new Promise((resolve) => ws.once('message', (data) => resolve(data.toString())));
      ws.send('2probe');
      assert.equal(await within(5_000, pong, 'the answer to the probe'), '3probe');
    },
  })) {
    test(`that breaks off ${when} ends the session and takes its user offline`, async (t) => {
      const watcher = await join(t, server, { userId: someone('watcher') });
      const userId = someone('halfway');
      const sid = await pollingSession(userId);
      const { presence } = await watcher.ok('presence:subscribe', { userIds: [userId] });
      assert.equal(presence[userId], 'online');
      const { ws, opened } = upgrade(sid);
      await opened;
      await begin(ws);
      ws.terminate();
      assert.equal((await watcher.next('presence:update')).status, 'offline');
      await eventually(async () => (await fetch(polling(sid))).status === 400, 'the session is gone');
    });
  }

  test('that never comes to its end is cut off, and its user is offline', async (t) => {
    const watcher = await join(t, server, { userId: someone('watcher') });
    const userId = someone('stalled');
    const sid = await pollingSession(userId);
    assert.equal((await watcher.ok('presence:subscribe', { userIds: [userId] })).presence[userId], 'online');
    const { ws, opened } = upgrade(sid);
    const closed = new Promise((resolve) => ws.once('close', resolve));
    await opened;
    // The session sends nothing, and gets no ping.
    await within(20_000, closed, 'the connection is closed');
    assert.equal((await watcher.next('presence:update')).status, 'offline');
    await eventually(async () => (await fetch(polling(sid))).status === 400, 'the session is gone');
  });

  test('that is tried twice at once is refused the second time', async () => {
    const sid = await pollingSession(someone('twice'));
    const first = upgrade(sid);
    await first.opened;
    assert.equal(await within(5_000, upgrade(sid).refused, 'the refusal'), 400);
    first.ws.terminate();
  });
});

test('no handshake gets round the guarded websocket', async (t) => {
  for (const query of ['EIO=4=&transport=websocket', 'EIO=4&transport=websocket=', 'EIO=4&transport=polling']) {
    const { socket, received } = tcp(t, server);
    socket.write(
      `GET /socket.io/?${query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
        'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    );
    await eventually(() => received().startsWith('HTTP/1.1 400'), `${query}: ${received().slice(0, 40)}`);
  }
});

test('a client that leaves the namespace and comes back on its connection is online', async (t) => {
  const userId = someone('returning');
  const raw = await rawSocket(t, server, { userId });
  for (let round = 0; round < 5; round += 1) {
    const backlog = Array.from({ length: 200 }, () => '42["ice:servers",{}]');
    raw.send(...backlog, '41');
    // While the earlier session is being detached, CONNECT is ignored or refused.
    const joined = raw.frame((text) => text.startsWith('40{'), 'CONNECT');
    const asking = setInterval(() => raw.send(`40${JSON.stringify({ userId })}`), 20);
    await joined.finally(() => clearInterval(asking));
    const caller = await join(t, server, { userId: someone('caller') });
    assert.equal((await caller.ok('call:initiate', { toUserId: userId, callType: 'audio' })).status, 'pending');
    await raw.event('call:incoming');
    await caller.ok('call:end', { toUserId: userId });
    await raw.event('call:ended');
  }
  await assertCallsWork(t, server);
});

describe('a connection whose socket is gone and does not come back is closed', { concurrency: true }, () => {
  test('on a websocket', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('left') });
    raw.send('41');
    await within(20_000, raw.closed, 'the connection is closed');
  });

  test('on polling', async () => {
    const sid = await pollingSession(someone('left'));
    await fetch(polling(sid), { method: 'POST', body: '41' });
    await eventually(async () => (await fetch(polling(sid))).status === 400, 'the session is gone', 20_000);
  });

  test('on a websocket that began as polling', async (t) => {
    const sid = await pollingSession(someone('left'));
    const { ws, opened } = upgrade(sid);
    const closed = new Promise((resolve) => ws.once('close', resolve));
    await opened;
    const pong = new Promise((resolve) => ws.once('message', resolve));
    ws.send('2probe');
    await pong;
    ws.send('5');
    ws.send('41');
    await within(20_000, closed, 'the connection is closed');
  });

  test('also if the server has closed the socket, because it did not say who it is', async (t) => {
    const raw = await rawSocket(t, server, { joins: false });
    raw.send('40');
    await within(30_000, raw.closed, 'the connection is closed');
  });
});

test('the caller hears that it rings before it hears of an answer', async (t) => {
  const { caller, callee } = await ringing(t, server, { withOffer: false });
  callee.socket.on('call:incoming', ({ fromUserId }) => callee.socket.emit('call:busy', { toUserId: fromUserId }));
  await caller.ok('call:end', { toUserId: callee.userId });
  for (let round = 0; round < 50; round += 1) {
    const heard = [];
    const note = (name) => heard.push(name);
    caller.socket.onAny(note);
    caller.socket.emit('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    await eventually(() => heard.includes('call:busy'), 'busy');
    await caller.fence();
    caller.socket.offAny(note);
    assert.deepEqual(heard.filter((name) => name.startsWith('call:')), ['call:ringing', 'call:busy']);
  }
});

test('a server that stops says so before it closes connections', async (t) => {
  const leaving = await startServer();
  t.after(() => leaving.stop());
  const clients = [await join(t, leaving), await join(t, leaving, { transports: ['polling'] })];
  const goodbyes = clients.map((client) => client.next('server:draining'));
  await leaving.stop();
  for (const goodbye of await Promise.all(goodbyes)) {
    assert.deepEqual(Object.keys(goodbye), ['reconnectWithinMs']);
    assert.ok(goodbye.reconnectWithinMs > 0);
  }
  assert.notEqual((await clients[0].next('disconnect')), 'io server disconnect');
});
