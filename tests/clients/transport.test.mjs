// The transports of Socket.IO, the HTTP routes beside them, and reconnection after a restart.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, describe, test } from 'node:test';
import { activeCall, answer, assertTalking, candidates, dial, offer, pair, pickUp } from '../support/calls.mjs';
import { someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { get } from '../support/http.mjs';
import { rawSocket } from '../support/raw.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

const TRANSPORTS = {
  websocket: ['websocket'],
  polling: ['polling'],
  'polling, then websocket': ['polling', 'websocket'],
};

/** Waits until the library has upgraded the connection, if its transport upgrades. */
async function upgraded(client) {
  const { engine } = client.socket.io;
  if (engine.transport.name === 'websocket') return;
  await once(engine, 'upgrade', { signal: AbortSignal.timeout(10_000) });
}

describe('a client that leaves the slash at the end of the path out', { concurrency: true }, () => {
  for (const [name, transports] of Object.entries(TRANSPORTS)) {
    test(`is served on ${name}`, async (t) => {
      const options = { transports, addTrailingSlash: false };
      const { caller, callee } = await pair(t, server, { caller: options, callee: options });
      await dial(caller, callee);
      await pickUp(callee, caller);
      await assertTalking(caller, callee);
    });
  }

  test('is no way around the check of origins', async () => {
    for (const path of ['/socket.io/', '/socket.io']) {
      const response = await fetch(`${server.url}${path}?EIO=4&transport=polling`, { headers: { origin: 'https://elsewhere.example.org' } });
      assert.equal(response.status, 403, path);
    }
  });
});

describe('users with numbers for ids', { concurrency: true }, () => {
  test('call each other; what goes out is a string', async (t) => {
    const [alice, bob] = [1, 2].map(() => Math.trunc(Math.random() * Number.MAX_SAFE_INTEGER));
    const caller = await join(t, server, { userId: alice });
    const callee = connect(t, server);
    await callee.connected();
    assert.equal((await callee.ok('user-connected', bob)).userId, `${bob}`);
    await caller.ok('call:initiate', { toUserId: bob, callType: 'audio' });
    assert.equal((await callee.next('call:incoming')).fromUserId, `${alice}`);
    await callee.ok('call:answer', { toUserId: alice, answer: answer() });
    assert.equal((await caller.next('call:answer')).fromUserId, `${bob}`);
    const unsafe = await caller.ack('call:end', { toUserId: 2 ** 53 });
    assert.equal(unsafe.error.type, 'INVALID_PAYLOAD');
    assert.match(unsafe.error.message, /^toUserId: expected .*string/);
    assert.equal((await caller.ok('call:end', { toUserId: bob })).reason, 'completed');
  });
});

describe('a whole call', { concurrency: true }, () => {
  for (const [from, callerTransports] of Object.entries(TRANSPORTS)) {
    for (const [to, calleeTransports] of Object.entries(TRANSPORTS)) {
      test(`from ${from} to ${to}`, async (t) => {
        const { caller, callee } = await pair(t, server, {
          caller: { transports: callerTransports },
          callee: { transports: calleeTransports },
        });
        await dial(caller, callee);
        await pickUp(callee, caller);
        await assertTalking(caller, callee);
        for (const client of [caller, callee]) {
          if (client.socket.io.opts.transports.length === 2) await upgraded(client);
          assert.equal(client.socket.io.engine.transport.name, client.socket.io.opts.transports.at(-1));
        }
        await assertTalking(caller, callee);
        await caller.ok('call:end', { toUserId: callee.userId, duration: 3 });
        assert.equal((await callee.next('call:ended')).duration, 3);
        await caller.nothingElse({ after: [callee] });
        await callee.nothingElse();
      });
    }
  }

  test('nothing is lost or overtaken while the connection upgrades', async (t) => {
    const callee = await join(t, server, { userId: someone('bob') });
    const caller = connect(t, server, { auth: { userId: someone('alice') }, transports: ['polling', 'websocket'] });
    const toUserId = callee.userId;
    // All events are passed to the library before it is connected.
    caller.emit('call:initiate', { toUserId, callType: 'video' });
    caller.emit('call:offer', { toUserId, offer: offer() });
    for (const one of candidates(300)) caller.emit('call:ice-candidate', { toUserId, candidate: one });
    await caller.connected();
    await upgraded(caller);
    for (const one of candidates(200, 301)) caller.emit('call:ice-candidate', { toUserId, candidate: one });
    const heard = await callee.nextFew('call:ice-candidate', 500);
    assert.deepEqual(heard.map((event) => event.candidate), candidates(500));
    await caller.none('call:error');
  });

  test('nothing is lost or overtaken on its way to a connection that upgrades', async (t) => {
    const { caller, callee } = await activeCall(t, server, { callee: { transports: ['polling', 'websocket'] } });
    for (const one of candidates(500)) caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: one });
    const heard = await callee.nextFew('call:ice-candidate', 500);
    assert.deepEqual(heard.map((event) => event.candidate), candidates(500));
    await upgraded(callee);
    await assertTalking(caller, callee);
  });

  test('what is relayed is not touched, byte for byte', async (t) => {
    const caller = await rawSocket(t, server, { userId: someone('alice') });
    const callee = await rawSocket(t, server, { userId: someone('bob') });
    await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' });
    const odd = '{"sdp":"v=0\\r\\n\\u00e9\\/","type":"offer","big":123456789012345678901234567890,"exact":1.10,"twice":1e2}';
    caller.send(`42["call:offer",{"offer":${odd},"toUserId":"${callee.userId}"}]`);
    const frame = await callee.frame((text) => text.startsWith('42["call:offer"'), 'the offer');
    assert.ok(frame.includes(`"offer":${odd}`), frame);
  });
});

describe('beside the calls', { concurrency: true }, () => {
  test('the page, its files and the client library are served', async () => {
    const home = await get(server, '/');
    assert.equal(home.status, 200);
    assert.match(home.headers.get('content-type'), /^text\/html/);
    const html = await home.text();
    assert.match(html, /<html/i);
    for (const [, path] of html.matchAll(/(?:src|href)="([^"#:]+)"/g)) {
      const file = await get(server, path);
      assert.equal(file.status, 200, `${path} is linked from the page`);
      await file.arrayBuffer();
    }
    for (const path of ['/socket.io/socket.io.js', '/socket.io/socket.io.min.js']) {
      const library = await get(server, path);
      assert.equal(library.status, 200, path);
      assert.match(library.headers.get('content-type'), /^(text|application)\/javascript/);
      assert.match(await library.text(), /Socket\.IO v4\./);
    }
  });

  test('what is not there is 404', async () => {
    for (const path of ['/nothing', '/v1/nothing', '/healthz', '/../Cargo.toml', '/%2e%2e/Cargo.toml', '/switchboard.db', '/.git/config']) {
      const response = await get(server, path);
      assert.equal(response.status, 404, path);
      await response.arrayBuffer();
    }
  });

  test('the page calls nobody else’s servers', async () => {
    const html = await (await get(server, '/')).text();
    assert.ok(!/(?:src|href)="(?:https?:)?\/\//.test(html), 'all that the page loads comes from this server');
  });
});

describe('a restart of the server', { concurrency: true }, () => {
  test('clients come back by themselves and calls work again', async (t) => {
    const brief = await startServer();
    t.after(() => brief.stop());
    const byItself = { reconnection: true, reconnectionDelay: 100, reconnectionDelayMax: 300 };
    for (const transports of [['websocket'], ['polling']]) {
      const options = { transports, ...byItself };
      const { caller, callee, callId } = await activeCall(t, brief, { caller: options, callee: options });
      await brief.restart();
      for (const client of [caller, callee]) {
        const reason = await client.next('disconnect');
        await client.connected().catch((error) => assert.fail(`${transports} after '${reason}': ${error.message}`));
        await client.fence();
        assert.equal((await client.ok('call:sync', {})).call, null, 'with one node, a call lives as long as the server');
        client.forget();
      }
      const { callId: nextId } = await dial(caller, callee);
      assert.notEqual(nextId, callId);
      await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
      await caller.next('call:answer');
      await assertTalking(caller, callee);
    }
  });

  test('a server that was killed starts again with its history', async (t) => {
    const brief = await startServer();
    t.after(() => brief.stop());
    const { callId, caller } = await activeCall(t, brief);
    await brief.kill('SIGKILL');
    await brief.start();
    assert.match(brief.readyLine, new RegExp(`:${brief.port}/$`));
    const response = await get(brief, '/v1/calls', { userId: caller.userId });
    assert.equal(response.status, 200);
    const rows = (await response.json()).calls;
    for (const one of rows) assert.equal(one.id, callId);
    await activeCall(t, brief);
  });
});
