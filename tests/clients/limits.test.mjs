// The limits of addresses, users and sockets. Each server here has limits that a test reaches quickly.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { request } from 'node:http';
import { describe, test } from 'node:test';
import { WebSocket } from 'ws';
import { startBalancer } from '../support/balancer.mjs';
import { activeCall, candidate, dial, offer, pair, ringing } from '../support/calls.mjs';
import { assertError, assertRefused, eventually, someone, within } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { yaml } from '../support/deployment.mjs';
import { assertProblem } from '../support/http.mjs';
import { counted, scrape } from '../support/metrics.mjs';
import { rawSocket } from '../support/raw.mjs';
import { USUAL_LIMITS, launch, privateFolder, runToExit, startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

/** A server with these limits only, such as `events=5/1h`. */
async function limited(t, limits, { args = [], ...options } = {}) {
  const server = await startServer({ args: ['--limits', ['off', ...limits].join(), ...args], ...options });
  t.after(() => server.stop());
  return server;
}

/** Checks how often each limit was reached since `before`. */
const reached = (server, before, expected) => counted(server, before, { switchboard_limits_hit_total: expected });

/** The status of a handshake over this transport. 101 or 200 opens a connection, which stays until the test ends. */
async function handshake(t, { port, host = '127.0.0.1' }, { transport = 'websocket', headers = {} } = {}) {
  const path = `/socket.io/?EIO=4&transport=${transport}`;
  if (transport === 'polling') {
    const asked = request({ host, port, path, headers, agent: false }).end();
    const [response] = await once(asked, 'response');
    response.resume();
    return { status: response.statusCode, headers: response.headers };
  }
  const ws = new WebSocket(`ws://${host.includes(':') ? `[${host}]` : host}:${port}${path}`, { headers });
  ws.on('error', () => {});
  t.after(() => ws.terminate());
  const [kind, response] = await Promise.race([
    once(ws, 'upgrade').then(([response]) => ['upgrade', response]),
    once(ws, 'unexpected-response').then(([, response]) => ['refused', response]),
  ]);
  if (kind === 'refused') response.resume();
  return { status: response.statusCode, headers: response.headers, close: () => ws.terminate() };
}

const statusOf = async (...args) => (await handshake(...args)).status;

const retryAfter = ({ headers }) => {
  const seconds = Number(headers['retry-after']);
  assert.ok(Number.isInteger(seconds) && seconds >= 1, `Retry-After: ${headers['retry-after']}`);
  return seconds;
};

describe('events of a socket', { concurrency: true }, () => {
  test('are limited, and whoever waits as long as told is served again', async (t) => {
    const server = await limited(t, ['events=20/20s']);
    const [anna, ben] = [await join(t, server, { userId: someone('anna') }), await join(t, server, { userId: someone('ben') })];
    const before = await scrape(server);
    const answers = await Promise.all(Array.from({ length: 40 }, () => anna.ack('call:sync', {})));
    const refusals = answers.filter(({ ok }) => !ok);
    assert.ok(refusals.length >= 15 && refusals.length <= 21, `${refusals.length} of 40`);
    const last = refusals.at(-1);
    assertRefused(last, 'RATE_LIMITED', { event: 'call:sync' });
    assert.ok(last.error.retryAfterMs > 0 && last.error.retryAfterMs <= 1_000, JSON.stringify(last));
    await reached(server, before, { events: refusals.length });
    await ben.ok('call:sync', {});
    await new Promise((resolve) => setTimeout(resolve, last.error.retryAfterMs));
    await anna.ok('call:sync', {});
  });

  test('without an ack are refused by call:error, and names that nobody knows count too', async (t) => {
    const server = await limited(t, ['events=5/1h']);
    const raw = await rawSocket(t, server, { userId: someone('anna') });
    for (let count = 0; count < 4; count += 1) raw.emit('no:such', {});
    for (let count = 0; count < 4; count += 1) assertError(await raw.event('call:error'), 'INVALID_PAYLOAD');
    raw.emit('call:offer', { toUserId: 'ben', offer: offer() });
    const error = await raw.event('call:error');
    assertError(error, 'RATE_LIMITED', { event: 'call:offer', toUserId: 'ben' });
    assert.ok(error.retryAfterMs > 600_000, JSON.stringify(error));
  });

  test('have candidates beside them: seventy in a second are nothing', async (t) => {
    const usual = await startServer({ env: USUAL_LIMITS });
    t.after(() => usual.stop());
    const { caller, callee } = await activeCall(t, usual);
    for (let count = 0; count < 70; count += 1) caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: candidate(count) });
    await callee.nextFew('call:ice-candidate', 70);
    await caller.none('call:error');

    const server = await limited(t, ['events=9/1h', 'candidates=100/1h']);
    const small = await activeCall(t, server);
    const send = (number) => small.caller.ack('call:ice-candidate', { toUserId: small.callee.userId, candidate: candidate(number) });
    const before = await scrape(server);
    const answers = await Promise.all(Array.from({ length: 110 }, (_, number) => send(number)));
    assert.equal(answers.filter(({ ok }) => ok).length, 100);
    assertRefused(answers[105], 'RATE_LIMITED', { event: 'call:ice-candidate', toUserId: small.callee.userId });
    await reached(server, before, { candidates: 10 });
    assert.equal((await small.callee.nextFew('call:ice-candidate', 100)).length, 100);
  });

  test('never are call:end, call:reject and call:busy for a live call; for no call they count', async (t) => {
    // The caller's three events: fence, initiate, offer. The callee's one: fence.
    const server = await limited(t, ['events=3/1h']);
    for (const [event, who] of [['call:end', 'caller'], ['call:reject', 'callee'], ['call:busy', 'callee']]) {
      const { caller, callee } = await ringing(t, server);
      const [one, other] = who === 'caller' ? [caller, callee] : [callee, caller];
      for (const spent of [1, 2, 3]) await one.ack('call:sync', { spent });
      assertRefused(await one.ack('call:sync', {}), 'RATE_LIMITED');
      const answers = await Promise.all(Array.from({ length: 500 }, () => one.ack(event, { toUserId: other.userId })));
      assert.equal(answers[0].ok, true, event);
      assertRefused(answers.at(-1), 'RATE_LIMITED', { event, toUserId: other.userId });
      await other.next({ 'call:end': 'call:ended', 'call:reject': 'call:rejected', 'call:busy': 'call:busy' }[event]);
    }
  });

  test('that go on without waiting close the socket, and the log stays short', async (t) => {
    const server = await limited(t, ['events=10/1m']);
    const { caller, callee } = await pair(t, server);
    const raw = await rawSocket(t, server, { userId: someone('flood') });
    const before = await scrape(server);
    const frames = Array.from({ length: 20 }, () => Array(500).fill('42["call:sync",{}]'));
    for (const some of frames) {
      raw.send(...some);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await Promise.race([raw.frame((text) => text === '41', 'the end of the socket'), raw.closed]);
    const after = await scrape(server);
    const hits = after.byLabels('switchboard_limits_hit_total', before);
    assert.ok(hits.flood === 1 || hits.inbox === 1, JSON.stringify(hits));
    await eventually(async () => (await scrape(server)).value('switchboard_sockets') === 2, 'the socket is gone');
    await dial(caller, callee);
    const lines = server.logs().split('\n').filter((line) => line.includes('a limit was reached'));
    assert.ok(lines.length >= 1 && lines.length <= 3, `${lines.length} lines:\n${lines.slice(0, 5).join('\n')}`);
  });
});

describe('bytes of a websocket', { concurrency: true }, () => {
  test('are refused beyond what its events may have, and close it beyond twice as many', async (t) => {
    const server = await limited(t, ['events=200/4s', 'frames=off']);
    const raw = await rawSocket(t, server, { userId: someone('flood') });
    const before = await scrape(server);
    const long = offer('x'.repeat(60_000));
    for (let count = 0; count < 60; count += 1) raw.emit('call:offer', { toUserId: 'nobody', offer: long });
    await within(10_000, raw.closed, 'the transport is closed');
    const metrics = await scrape(server);
    const hits = metrics.byLabels('switchboard_limits_hit_total', before);
    assert.equal(hits.bytes, 1);
    assert.ok(hits.events >= 1, JSON.stringify(hits));
    const read = metrics.byLabels('switchboard_client_received_bytes_total', before)['call:offer'];
    assert.ok(read < 40 * 60_000, `${read} bytes were read`);
  });
});

describe('connections that are closed because of what they sent', { concurrency: true }, () => {
  test('keep their address away for a while, and no other', async (t) => {
    const server = await limited(t, ['frames=100/1h', 'floods=2/1h'], { args: ['--trusted-proxies', '127.0.0.1'] });
    const lasting = await activeCall(t, server);
    const from = (address) => ({ headers: { 'X-Forwarded-For': address } });
    const flood = async () => {
      const ws = new WebSocket(`ws://127.0.0.1:${server.port}/socket.io/?EIO=4&transport=websocket`, from('192.0.2.1'));
      ws.on('error', () => {});
      await once(ws, 'open');
      const closed = once(ws, 'close');
      for (let count = 0; count < 200; count += 1) ws.send('3');
      await closed;
    };
    const before = await scrape(server);
    await flood();
    await flood();
    const refused = await handshake(t, server, from('192.0.2.1'));
    assert.equal(refused.status, 429);
    assert.ok(retryAfter(refused) > 60);
    assert.equal(await statusOf(t, server, from('192.0.2.2')), 101);
    await lasting.caller.ok('call:end', { toUserId: lasting.callee.userId });
    await reached(server, before, { frames: 2, floods: 1 });
  });
});

describe('packets of a connection', { concurrency: true }, () => {
  test('count whatever they are: too many of them close it', async (t) => {
    const server = await limited(t, ['frames=50/1h']);
    const floods = {
      pong: (raw) => raw.send('3'),
      'websocket ping': (raw) => raw.ws.ping(),
      'a namespace that is not there': (raw) => raw.send('40/x,'),
      'an event for it': (raw) => raw.send('42/zz,["a"]'),
      'an ack that nobody waits for': (raw) => raw.send('431[]'),
    };
    for (const [name, send] of Object.entries(floods)) {
      const raw = await rawSocket(t, server, { userId: someone('flood') });
      const before = await scrape(server);
      for (let count = 0; count < 40; count += 1) send(raw);
      await raw.ack('ice:servers', {});
      for (let count = 0; count < 20; count += 1) send(raw);
      await within(5_000, raw.closed, `the connection is closed for ${name}`);
      await reached(server, before, { frames: 1 });
    }
    const lines = server.logs().split('\n').filter((line) => line.includes('a limit was reached'));
    assert.ok(lines.length >= 1 && lines.length <= 3 && lines[0].includes('frames'), lines.join('\n'));
  });

  test('on polling are requests, and what is in them', async (t) => {
    const server = await limited(t, ['frames=50/1h']);
    const open = async () => {
      const text = await (await fetch(`${server.url}/socket.io/?EIO=4&transport=polling`)).text();
      return `${server.url}/socket.io/?EIO=4&transport=polling&sid=${JSON.parse(text.slice(1)).sid}`;
    };
    const before = await scrape(server);
    const url = await open();
    const post = (packets) => fetch(url, { method: 'POST', body: Array(packets).fill('3').join('\x1e') });
    assert.equal((await post(30)).status, 200);
    assert.notEqual((await post(30)).status, 200);
    await reached(server, before, { frames: 1 });
    await eventually(async () => (await fetch(url)).status === 400, 'the session is gone');
  });

  test('on polling have a bound in bytes', async (t) => {
    const server = await limited(t, ['events=200/4s', 'frames=off']);
    const text = await (await fetch(`${server.url}/socket.io/?EIO=4&transport=polling`)).text();
    const url = `${server.url}/socket.io/?EIO=4&transport=polling&sid=${JSON.parse(text.slice(1)).sid}`;
    const post = (body) => fetch(url, { method: 'POST', body });
    assert.equal((await post(`40${JSON.stringify({ userId: someone('flood') })}`)).status, 200);
    await (await fetch(url)).text();
    const before = await scrape(server);
    const long = `42${JSON.stringify(['call:offer', { toUserId: 'nobody', offer: offer('x'.repeat(60_000)) }])}`;
    let taken = 0;
    while (taken < 60 && (await post(long)).status === 200) taken += 1;
    assert.ok(taken >= 13 && taken < 40, `${taken} of 60 KB were taken`);
    const hits = (await scrape(server)).byLabels('switchboard_limits_hit_total', before);
    assert.ok(hits.bytes === 1 && hits.events >= 1, JSON.stringify(hits));
    await eventually(async () => (await fetch(url)).status === 400, 'the session is gone');
  });

  test('are never too many of a client that sends all that it may', async (t) => {
    const server = await startServer({ env: USUAL_LIMITS });
    t.after(() => server.stop());
    const { caller, callee } = await activeCall(t, server);
    const before = await scrape(server);
    for (let count = 0; count < 500; count += 1) caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: candidate(count) });
    // In two parts: 1,024 events may wait to be handled, and a busy machine is slow to handle them.
    const sync = () => Promise.all(Array.from({ length: 450 }, () => caller.ack('call:sync', {})));
    const answers = [...(await sync()), ...(await sync())];
    assert.ok(answers.filter(({ ok }) => ok).length >= 190);
    await callee.nextFew('call:ice-candidate', 500);
    await caller.none('call:error');
    const hits = (await scrape(server)).byLabels('switchboard_limits_hit_total', before);
    assert.deepEqual(Object.keys(hits), ['events'], JSON.stringify(hits));
  });
});

describe('a message before joining', { concurrency: true }, () => {
  const BEYOND = 17 * 1024;

  test('is 16 KiB at most, in one frame or in several', async (t) => {
    const server = await limited(t, []);
    const sends = {
      'one frame': (ws) => ws.send(`40{"token":"${'x'.repeat(BEYOND)}"}`),
      'several frames': (ws) => {
        for (let count = 0; count < 9; count += 1) ws.send('x'.repeat(2 * 1024), { fin: false });
      },
    };
    for (const [name, send] of Object.entries(sends)) {
      const raw = await rawSocket(t, server, { joins: false });
      const before = await scrape(server);
      send(raw.ws);
      await within(5_000, raw.closed, `the connection is closed: ${name}`);
      await reached(server, before, { unjoined: 1 });
    }
    const joined = await rawSocket(t, server, { userId: someone('anna') });
    joined.emit('call:sync', { filler: 'x'.repeat(BEYOND) });
    await joined.ack('ice:servers', {});
  });

  test('on polling too; once joined it may be longer there, and on the websocket that it moves to', async (t) => {
    const server = await limited(t, []);
    const text = await (await fetch(`${server.url}/socket.io/?EIO=4&transport=polling`)).text();
    const url = `${server.url}/socket.io/?EIO=4&transport=polling&sid=${JSON.parse(text.slice(1)).sid}`;
    const before = await scrape(server);
    const long = { method: 'POST', body: `42["call:sync",{"filler":"${'x'.repeat(BEYOND)}"}]` };
    assert.equal((await fetch(url, long)).status, 413);
    await reached(server, before, { unjoined: 1 });
    assert.equal((await fetch(url, { method: 'POST', body: `40{"userId":"${someone('anna')}"}` })).status, 200);
    await eventually(async () => (await (await fetch(url)).text()).includes('40{'), 'it has joined');
    assert.equal((await fetch(url, long)).status, 200);

    const { caller, callee } = await ringing(t, server, { caller: { transports: ['polling', 'websocket'] } });
    await eventually(() => caller.socket.io.engine.transport.name === 'websocket', 'it has moved');
    await caller.ok('call:offer', { toUserId: callee.userId, offer: { type: 'offer', sdp: 'x'.repeat(60 * 1024) } });
    await callee.next('call:offer');
  });
});

describe('requests over HTTP', { concurrency: true }, () => {
  const ask = (server, user, path, claims) => fetch(`${server.url}${path}`, { headers: { authorization: `Bearer ${tokenOf(user, claims)}` } });

  test('for history and presence are so many of a user; an admin asks for others', async (t) => {
    const server = await limited(t, ['requests=4/1h', 'presence-ids=500/1h'], { env: JWT });
    const before = await scrape(server);
    for (const path of ['/v1/calls', '/v1/presence?userIds=ben', '/v1/calls', '/v1/presence?userIds=ben']) {
      assert.equal((await ask(server, 'anna', path)).status, 200, path);
    }
    const refused = await ask(server, 'anna', '/v1/calls');
    assert.ok(Number(refused.headers.get('retry-after')) > 60);
    await assertProblem(refused, 429);
    await assertProblem(await ask(server, 'anna', '/v1/presence?userIds=ben'), 429);
    assert.equal((await ask(server, 'anna', '/v1/ice-servers')).status, 200);
    assert.equal((await ask(server, 'ben', '/v1/calls')).status, 200);
    const many = Array(499).fill('x').join();
    assert.equal((await ask(server, 'ben', `/v1/presence?userIds=${many}`)).status, 200);
    await assertProblem(await ask(server, 'ben', `/v1/presence?userIds=${many}`), 429);
    for (let count = 0; count < 6; count += 1) assert.equal((await ask(server, 'root', '/v1/calls?userId=anna', { scope: 'admin' })).status, 200);
    await reached(server, before, { requests: 2, presence_ids: 1 });
  });

  test('for history are few of a token at a time', async (t) => {
    const server = await limited(t, ['history-reads=1'], { env: JWT });
    const answers = await Promise.all(Array.from({ length: 100 }, () => ask(server, 'anna', '/v1/calls')));
    assert.deepEqual([...new Set(answers.map(({ status }) => status))].sort(), [200, 429]);
    await assertProblem(answers.find(({ status }) => status === 429), 429);
    assert.equal((await ask(server, 'anna', '/v1/calls')).status, 200);
  });
});

describe('a user', { concurrency: true }, () => {
  test('may try to call so often, from whatever socket; others are not concerned', async (t) => {
    const server = await limited(t, ['call-attempts=3/1h']);
    const userId = someone('anna');
    const sockets = [await join(t, server, { userId }), await join(t, server, { userId })];
    const call = (socket) => socket.ack('call:initiate', { toUserId: someone('nobody'), callType: 'audio' });
    for (const number of [0, 1, 0]) assertRefused(await call(sockets[number]), 'RECIPIENT_OFFLINE');
    const before = await scrape(server);
    for (const socket of sockets) {
      const refused = await call(socket);
      assertRefused(refused, 'RATE_LIMITED', { event: 'call:initiate', mentions: 'call too often' });
      assert.ok(refused.error.retryAfterMs > 60_000, JSON.stringify(refused));
      await socket.ok('call:sync', {});
    }
    await reached(server, before, { call_attempts: 2 });
    assertRefused(await call(await join(t, server, { userId: someone('ben') })), 'RECIPIENT_OFFLINE');
  });

  test('may have so many sockets, and another when one is gone', async (t) => {
    const server = await limited(t, ['user-sockets=2']);
    const userId = someone('anna');
    const [first] = [await join(t, server, { userId }), await join(t, server, { userId })];
    const before = await scrape(server);
    const third = connect(t, server, { auth: { userId } });
    assert.match(await third.next('connect_error'), /^RATE_LIMITED: this user has as many connections/);
    const late = connect(t, server);
    await late.connected();
    const refused = await late.ack('user-connected', userId);
    assertRefused(refused, 'RATE_LIMITED');
    assert.ok(refused.error.retryAfterMs > 0);
    await reached(server, before, { user_sockets: 2 });
    first.close();
    await eventually(async () => (await late.ack('user-connected', userId)).ok, 'there is a place again');
    await join(t, server, { userId: someone('ben') });
  });
});

describe('an address', { concurrency: true }, () => {
  for (const transport of ['websocket', 'polling']) {
    test(`may have so many connections, and another when one is gone (${transport})`, async (t) => {
      const server = await limited(t, ['address-sockets=2']);
      const clients = [await join(t, server, { userId: 'anna', transports: [transport] }), await join(t, server, { userId: 'ben', transports: [transport] })];
      const before = await scrape(server);
      for (const other of ['websocket', 'polling']) {
        const refused = await handshake(t, server, { transport: other });
        assert.equal(refused.status, 429);
        retryAfter(refused);
      }
      await reached(server, before, { address_sockets: 2 });
      // The library retries by itself and is admitted.
      const third = connect(t, server, { auth: { userId: 'cora' }, transports: [transport], reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 100 });
      await third.next('connect_error');
      assert.equal(third.socket.active, true);
      clients[0].close();
      await third.connected();
    });
  }

  test('gets back the places of connections that broke, that never joined and that were refused', async (t) => {
    const server = await limited(t, ['address-sockets=3']);
    const raw = await rawSocket(t, server, { userId: someone('raw') });
    const idle = await rawSocket(t, server, { joins: false });
    const wrong = connect(t, server, { auth: { userId: '' } });
    await wrong.next('connect_error');
    const places = async (count) => {
      const answers = [];
      for (let number = 0; number < count; number += 1) answers.push(await handshake(t, server));
      return answers.map(({ status }) => status);
    };
    assert.deepEqual(await places(1), [429]);
    raw.destroy();
    await eventually(async () => (await places(1))[0] === 101, 'the place of the broken one is free');
    assert.deepEqual(await places(1), [429]);
    idle.destroy();
    wrong.socket.io.engine.close();
    // A connection that has not joined keeps its slot until the time-out for joining.
    await eventually(async () => (await places(1))[0] === 101, 'one place is free', 15_000);
    await eventually(async () => (await places(1))[0] === 101, 'two places are free', 15_000);
  });

  test('opens so many connections in a time, whatever becomes of them', async (t) => {
    const server = await limited(t, ['handshakes=5/1h']);
    for (let count = 0; count < 5; count += 1) {
      const { status, close } = await handshake(t, server, { transport: count % 2 ? 'polling' : 'websocket' });
      assert.ok(status === 101 || status === 200);
      close?.();
    }
    const before = await scrape(server);
    for (const transport of ['websocket', 'polling']) {
      const refused = await handshake(t, server, { transport });
      assert.equal(refused.status, 429);
      assert.ok(retryAfter(refused) > 600);
    }
    await reached(server, before, { handshakes: 2 });
    assert.equal((await fetch(`${server.url}/`)).status, 200, 'the page is not concerned');
  });

  test('cannot go round that by asking to join again and again on one connection', async (t) => {
    const server = await limited(t, ['handshakes=5/1h']);
    const raw = await rawSocket(t, server, { joins: false });
    const before = await scrape(server);
    for (let count = 0; count < 5; count += 1) {
      raw.send('40{"userId":1.5}');
      await raw.frame((text) => text.startsWith('44{'), 'a refusal');
    }
    raw.send('40{"userId":1.5}');
    await within(5_000, raw.closed, 'the connection is closed');
    await reached(server, before, { handshakes: 1 });
  });

  test('of IPv6 is its first 64 bits', async (t) => {
    const server = await limited(t, ['handshakes=2/1h'], { args: ['--trusted-proxies', '127.0.0.1'] });
    const from = (address) => statusOf(t, server, { headers: { 'x-forwarded-for': address } });
    assert.deepEqual([await from('2001:db8:0:1::1'), await from('2001:db8:0:1:ffff::2')], [101, 101]);
    assert.equal(await from('2001:db8:0:1:aaaa:bbbb:cccc:dddd'), 429);
    assert.equal(await from('2001:db8:0:2::1'), 101);
    assert.deepEqual([await from('192.0.2.1'), await from('::ffff:192.0.2.1'), await from('192.0.2.1')], [101, 101, 429]);
    assert.equal(await from('192.0.2.2'), 101);
  });

  test('that connects over IPv6 is counted too', async (t) => {
    const dir = await privateFolder();
    const run = launch(['--listen', '[::1]:0', '--limits', 'handshakes=2/1h'], { dir });
    t.after(async () => {
      run.child.kill('SIGTERM');
      await run.exit();
      await rm(dir, { recursive: true });
    });
    await eventually(() => run.stdout.endsWith('\n'), 'it serves');
    const there = { host: '::1', port: Number(/:(\d+)\/$/m.exec(run.stdout)[1]) };
    assert.deepEqual([await statusOf(t, there), await statusOf(t, there), await statusOf(t, there)], [101, 101, 429]);
  });
});

describe('forwarded addresses', { concurrency: true }, () => {
  const xff = (...addresses) => ({ headers: { 'x-forwarded-for': addresses.join(', ') } });

  test('are not believed of just anybody, and the log says so once', async (t) => {
    const server = await limited(t, ['handshakes=3/1h'], { args: ['--trusted-proxies', '10.0.0.0/8'] });
    const statuses = [];
    for (let count = 1; count <= 5; count += 1) statuses.push(await statusOf(t, server, xff(`192.0.2.${count}`)));
    assert.deepEqual(statuses, [101, 101, 101, 429, 429]);
    assert.equal(server.logs().match(/SWITCHBOARD_TRUSTED_PROXIES/g).length, 1);
  });

  test('of a proxy that is believed tell its clients apart: many reconnect at once through one', async (t) => {
    const server = await limited(t, ['handshakes=3/1h', 'address-sockets=2', 'failed-tokens=1/1h'], { args: ['--trusted-proxies', '127.0.0.1'] });
    const address = (number) => `198.51.${100 + (number >> 8)}.${number & 255}`;
    const all = await Promise.all(Array.from({ length: 400 }, (_, number) => statusOf(t, server, xff(address(number)))));
    assert.deepEqual(all.filter((status) => status !== 101), []);
    assert.equal(await statusOf(t, server, xff(address(1))), 101);
    assert.equal(await statusOf(t, server, xff(address(1))), 429);
    assert.ok(!server.logs().includes('SWITCHBOARD_TRUSTED_PROXIES'));
  });

  test('count from the end: what a client says of itself counts for nothing', async (t) => {
    const server = await limited(t, ['handshakes=1/1h'], { args: ['--trusted-proxies', '127.0.0.1,10.0.0.0/8'] });
    assert.equal(await statusOf(t, server, xff('203.0.113.1', '192.0.2.1', '10.1.2.3')), 101);
    assert.equal(await statusOf(t, server, xff('203.0.113.2', '192.0.2.1')), 429);
    assert.equal(await statusOf(t, server, xff('192.0.2.1', '192.0.2.2')), 101);
    assert.equal(await statusOf(t, server, { headers: { forwarded: 'for=192.0.2.3' } }), 101, 'that of the proxy itself');
    assert.equal(await statusOf(t, server, { headers: { forwarded: 'for=192.0.2.4' } }), 429);
  });

  test('may be in the header of the standard', async (t) => {
    const args = ['--trusted-proxies', '127.0.0.1', '--forwarded-header', 'forwarded'];
    const server = await limited(t, ['handshakes=1/1h'], { args });
    const from = (forwarded, more = {}) => statusOf(t, server, { headers: { forwarded, ...more } });
    assert.equal(await from('for="[2001:db8::1]:4711";proto=https'), 101);
    assert.equal(await from('for=203.0.113.9, for="[2001:db8::2]"', { 'x-forwarded-for': '203.0.113.8' }), 429);
    assert.equal(await from('for=192.0.2.1'), 101);
  });
});

/** The status of a request to HAProxy from this address of the machine. */
async function statusFrom(balancer, localAddress, path, headers = {}) {
  const asked = request({ port: balancer.port, localAddress, headers, agent: false, path }).end();
  const [response] = await once(asked, 'response');
  response.resume();
  return response.statusCode;
}

// As compose runs them: the shipped file of HAProxy, and nodes that trust it.
describe('HAProxy and nodes as they ship', { concurrency: true }, () => {
  const TRUSTED = yaml('deploy/compose.yaml').services.node1.environment.SWITCHBOARD_TRUSTED_PROXIES;
  const bad = (n) => ({
    authorization: `Bearer ${tokenOf('anna')}x`, 'x-forwarded-for': `192.0.2.${n % 250}, 127.0.0.44`, forwarded: `for=192.0.2.${n % 250}`,
  });
  const start = async (t, options = {}) => {
    const server = await startServer({ env: { ...JWT, SWITCHBOARD_LIMITS: 'failed-tokens=20/1h', SWITCHBOARD_TRUSTED_PROXIES: TRUSTED } });
    t.after(() => server.stop());
    const balancer = await startBalancer([server, server, server], options);
    t.after(() => balancer.stop());
    return { server, ask: (from, headers) => statusFrom(balancer, from, '/v1/calls', headers) };
  };
  const good = { authorization: `Bearer ${tokenOf('anna')}` };

  test('made-up addresses neither get around a limit nor lock somebody else out', async (t) => {
    const { ask } = await start(t);
    const statuses = [];
    for (let n = 0; n < 25; n += 1) statuses.push(await ask('127.0.0.33', bad(n)));
    assert.deepEqual(statuses, [...Array(20).fill(401), ...Array(5).fill(429)]);
    assert.equal(await ask('127.0.0.44', good), 200, 'the address that was named');
    assert.equal(await ask('127.0.0.33', good), 429);
  });

  test('a proxy in front that is named is believed about its clients, and nobody else is', async (t) => {
    const { ask } = await start(t, { env: { BALANCER_PROXIES: '127.0.0.50 127.0.0.60/31' } });
    for (let n = 0; n < 20; n += 1) await ask(n % 2 ? '127.0.0.50' : '127.0.0.61', { ...bad(n), 'x-forwarded-for': '192.0.2.9, 198.51.100.1' });
    const through = (address) => ({ ...good, 'x-forwarded-for': address });
    assert.equal(await ask('127.0.0.50', through('198.51.100.1')), 429);
    assert.equal(await ask('127.0.0.50', through('192.0.2.9, 198.51.100.2')), 200);
    assert.equal(await ask('127.0.0.50', good), 200, 'the proxy itself');
    assert.equal(await ask('127.0.0.62', through('198.51.100.1')), 200, 'who is no proxy of ours is itself');
  });
});

test('HAProxy, with the file that ships, says for whom it asks', async (t) => {
  const args = ['--limits', 'handshakes=2/1h', '--trusted-proxies', '127.0.0.1'];
  const nodes = await Promise.all([1, 2, 3].map(() => startServer({ args })));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  const balancer = await startBalancer(nodes);
  t.after(() => balancer.stop());
  const from = (localAddress, headers) => statusFrom(balancer, localAddress, '/socket.io/?EIO=4&transport=polling', headers);
  // Each of three nodes accepts two connections of an address.
  const statuses = [];
  for (let count = 0; count < 24; count += 1) statuses.push(await from('127.0.0.2', { 'x-forwarded-for': `192.0.2.${count}` }));
  assert.equal(statuses.filter((status) => status === 200).length, 6, `${statuses}`);
  assert.equal(await from('127.0.0.3'), 200);
});

describe('tokens that are not good', { concurrency: true }, () => {
  const ask = (server, token, address) => fetch(`${server.url}/v1/calls`, { headers: { authorization: `Bearer ${token}`, 'x-forwarded-for': address } });
  const start = (t) => limited(t, ['failed-tokens=4/1h'], { env: JWT, args: ['--trusted-proxies', '127.0.0.1'] });

  test('make the service deaf to their address, over HTTP and at the socket; others are not concerned', async (t) => {
    const server = await start(t);
    const [bad, good] = [`${tokenOf('anna')}x`, tokenOf('anna')];
    for (let count = 0; count < 2; count += 1) await assertProblem(await ask(server, bad, '192.0.2.1'), 401);
    const extraHeaders = { 'x-forwarded-for': '192.0.2.1' };
    const open = connect(t, server, { auth: { token: good }, extraHeaders });
    await open.connected();
    for (let count = 0; count < 2; count += 1) {
      const wrong = connect(t, server, { auth: { token: bad }, extraHeaders });
      assert.match(await wrong.next('connect_error'), /^UNAUTHENTICATED: /);
    }
    const before = await scrape(server);
    const refused = await ask(server, good, '192.0.2.1');
    assert.ok(Number(refused.headers.get('retry-after')) > 600);
    await assertProblem(refused, 429);
    assert.equal(await statusOf(t, server, { headers: extraHeaders }), 429);
    await reached(server, before, { failed_tokens: 2 });
    assert.equal((await ask(server, good, '192.0.2.2')).status, 200);
    // Open sockets stay connected, and may refresh their token.
    await open.ok('auth:refresh', { token: tokenOf('anna') });
  });

  test('count in auth:refresh too, where a socket may fail once more', async (t) => {
    const server = await start(t);
    const one = connect(t, server, { auth: { token: tokenOf('anna') }, extraHeaders: { 'x-forwarded-for': '192.0.2.3' } });
    await one.connected();
    for (let count = 0; count < 4; count += 1) assertRefused(await one.ack('auth:refresh', { token: 'x.y.z' }), 'UNAUTHENTICATED');
    const refused = await one.ack('auth:refresh', { token: 'x.y.z' });
    assertRefused(refused, 'RATE_LIMITED', { mentions: 'tokens' });
    assert.ok(refused.error.retryAfterMs > 60_000);
    await assertProblem(await ask(server, tokenOf('anna'), '192.0.2.3'), 429);
  });

  test('cannot be tried over and over on one connection', async (t) => {
    const server = await start(t);
    const raw = await rawSocket(t, server, { joins: false });
    for (let count = 0; count < 4; count += 1) {
      raw.send('40{"token":"x.y.z"}');
      await raw.frame((text) => text.startsWith('44{'), 'a refusal');
    }
    raw.send('40{"token":"x.y.z"}');
    await within(5_000, raw.closed, 'the connection is closed');
  });

  test('are not those that are missing or over: nobody guesses with these', async (t) => {
    const server = await start(t);
    for (let count = 0; count < 6; count += 1) {
      await assertProblem(await fetch(`${server.url}/v1/calls`), 401);
      await assertProblem(await ask(server, tokenOf('anna', { seconds: -100 })), 401);
    }
    assert.equal((await ask(server, tokenOf('anna'))).status, 200);
  });
});

describe('a node', { concurrency: true }, () => {
  test('takes so many connections: then 503, with Retry-After, on both transports', async (t) => {
    const server = await limited(t, ['sockets=3'], { args: ['--trusted-proxies', '127.0.0.1'] });
    const clients = [];
    for (const [index, transport] of ['websocket', 'polling', 'websocket'].entries()) {
      clients.push(await join(t, server, { userId: someone('user'), transports: [transport], extraHeaders: { 'x-forwarded-for': `192.0.2.${index}` } }));
    }
    const before = await scrape(server);
    for (const transport of ['websocket', 'polling']) {
      const refused = await handshake(t, server, { transport });
      assert.equal(refused.status, 503);
      retryAfter(refused);
    }
    await reached(server, before, { sockets: 2 });
    // An existing connection may still upgrade to a websocket, and everything else is served.
    await dial(clients[0], clients[2]);
    assert.equal((await fetch(`${server.url}/v1/calls?userId=anna`)).status, 200);
    const fourth = connect(t, server, { auth: { userId: someone('late') }, reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 100 });
    await fourth.next('connect_error');
    clients[1].close();
    await fourth.connected();
  });

  test('counts a connection that moves from polling to a websocket once', async (t) => {
    const server = await limited(t, ['sockets=1']);
    const client = connect(t, server, { auth: { userId: someone('anna') }, transports: ['polling', 'websocket'] });
    await client.connected();
    await eventually(() => client.socket.io.engine.transport.name === 'websocket', 'it has moved');
    assert.equal(await statusOf(t, server), 503);
    client.close();
    await eventually(async () => (await statusOf(t, server)) === 101, 'its place is free');
  });

  test('closes whoever does not say who they are in the time set', async (t) => {
    const server = await limited(t, ['identify=1s']);
    const before = await scrape(server);
    const [silent, known] = [connect(t, server), await join(t, server, { userId: someone('anna') })];
    await silent.connected();
    const began = Date.now();
    assert.equal(await silent.next('disconnect'), 'io server disconnect');
    assert.ok(Date.now() - began > 700 && Date.now() - began < 5_000, `${Date.now() - began} ms`);
    await known.fence();
    await reached(server, before, { identify: 1 });
  });

  test('takes payloads of the sizes set', async (t) => {
    const server = await limited(t, ['sdp=2KiB', 'candidate=100', 'caller-info=50', 'message=16KiB']);
    const { caller, callee } = await pair(t, server);
    const toUserId = callee.userId;
    const initiate = (length) => caller.ack('call:initiate', { toUserId, callType: 'audio', callerInfo: { name: 'x'.repeat(length) } });
    assertRefused(await initiate(50), 'PAYLOAD_TOO_LARGE', { mentions: ['callerInfo', '50'] });
    assert.equal((await initiate(30)).ok, true);
    const describe_ = (length) => caller.ack('call:offer', { toUserId, offer: { type: 'offer', sdp: 'x'.repeat(length) } });
    assertRefused(await describe_(2_049), 'PAYLOAD_TOO_LARGE', { mentions: ['sdp', '2048'] });
    assert.equal((await describe_(2_048)).ok, true);
    const trickle = (length) => caller.ack('call:ice-candidate', { toUserId, candidate: { candidate: 'x'.repeat(length) } });
    assertRefused(await trickle(100), 'PAYLOAD_TOO_LARGE', { mentions: ['candidate', '100'] });
    assert.equal((await trickle(50)).ok, true);
    const { components } = await (await fetch(`${server.url}/asyncapi.json`)).json();
    assert.equal(components.schemas.SessionDescription.properties.sdp.maxLength, 2_048);
    caller.emit('call:sync', { x: 'x'.repeat(17_000) });
    assert.notEqual(await caller.next('disconnect'), 'io server disconnect');
  });
});

describe('the settings', { concurrency: true }, () => {
  test('are on unless something else is said, and what is printed says which', async () => {
    const { stdout } = await runToExit(['config']);
    for (const name of ['events', 'candidates', 'call-attempts', 'handshakes', 'failed-tokens']) assert.match(stdout, new RegExp(`"${name}=\\d+/\\w+"`));
    for (const name of ['user-sockets', 'address-sockets', 'sockets']) assert.match(stdout, new RegExp(`"${name}=\\d+"`));
    const changed = await runToExit(['config'], { env: { SWITCHBOARD_LIMITS: 'events=off,sockets=7', SWITCHBOARD_TRUSTED_PROXIES: '10.0.0.0/8,::1' } });
    assert.match(changed.stdout, /"events=off".*"handshakes=\d+\/\w+".*"sockets=7"/);
    assert.match(changed.stdout, /^trusted_proxies = \["10\.0\.0\.0\/8", "::1\/128"\]$/m);
  });

  test('that make no sense are refused', async () => {
    for (const [args, mentions] of [
      [['--limits', 'evnts=5/1s'], 'evnts'],
      [['--limits', 'events=fast'], 'events'],
      [['--trusted-proxies', '10.0.0.0/40'], 'trusted_proxies'],
      [['--trusted-proxies', 'hops:0'], 'trusted_proxies'],
      [['--trusted-proxies', 'hops:1,10.0.0.0/8'], 'trusted_proxies'],
      [['--forwarded-header', 'x-real-ip'], 'forwarded-header'],
    ]) {
      const { code, stderr } = await runToExit([...args, '--listen', '127.0.0.1:0']);
      assert.equal(code, 1);
      assert.ok(stderr.startsWith('error: ') && stderr.includes(mentions), stderr);
    }
  });
});
