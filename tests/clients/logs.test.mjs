// The log: its content, its formats, and hashed user ids.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, offer } from '../support/calls.mjs';
import { assertRefused, eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { scrape } from '../support/metrics.mjs';
import { ONE_NODE, runToExit, startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const DEBUG = { RUST_LOG: 'info,switchboard=debug' };

/** A server with these settings, after a call between two users. */
async function afterCall(t, settings = {}, rust = DEBUG) {
  const server = await startServer({ env: { ...rust, ...settings } });
  t.after(() => server.stop());
  const { caller, callee, callId } = await activeCall(t, server);
  assertRefused(await caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio' }), 'CALL_IN_PROGRESS');
  await caller.ok('call:end', { toUserId: callee.userId });
  await callee.next('call:ended');
  if (rust === DEBUG) await eventually(() => /call ended/.test(server.logs()), 'the log tells of the end');
  return { server, caller, callee, callId, lines: server.logs().trimEnd().split('\n') };
}

/** The users named by log lines about joining, in order. */
const joinedIn = (lines) => lines.map((line) => JSON.parse(line)).filter(({ message }) => message === 'joined').map(({ user }) => user);

describe('the log', { ...ONE_NODE, concurrency: true }, () => {
  test('is for people unless told otherwise, and each line names its node', async (t) => {
    const { lines, caller } = await afterCall(t);
    const nodes = lines.map((line) => / node=([0-9a-f]{32})$/.exec(line)?.[1]);
    assert.ok(nodes.every((node) => node && node === nodes[0]), lines.join('\n'));
    assert.ok(lines.some((line) => line.includes(`user=${caller.userId} `)), lines.join('\n'));
  });

  test('says what RUST_LOG asks for', async (t) => {
    const { lines } = await afterCall(t, {}, {});
    assert.ok(lines.every((line) => !/ DEBUG /.test(line)), lines.join('\n'));
  });

  test('in JSON has one object a line, with the fields of each', async (t) => {
    const { server, lines, caller, callee, callId } = await afterCall(t, { SWITCHBOARD_LOG_FORMAT: 'json' });
    const parsed = lines.map((line) => JSON.parse(line));
    for (const line of parsed) {
      for (const field of ['timestamp', 'level', 'target', 'message', 'node']) {
        assert.equal(typeof line[field], 'string', JSON.stringify(line));
      }
      assert.ok(Math.abs(Date.parse(line.timestamp) - Date.now()) < 60_000, line.timestamp);
      assert.match(line.level, /^(DEBUG|INFO|WARN|ERROR)$/);
      assert.equal(line.node, parsed[0].node);
    }
    assert.deepEqual(joinedIn(lines), [caller.userId, callee.userId]);
    const ready = JSON.parse(server.readyLine);
    assert.deepEqual([ready.level, ready.node, ready.url], ['INFO', parsed[0].node, `${server.url}/`]);
    const starts = parsed.find(({ message }) => message === 'switchboard starts');
    assert.deepEqual([starts.auth, starts.backend, starts.database], ['open', 'embedded', `sqlite://${server.db}`]);
    assert.match(starts.version, /^\d+\.\d+\.\d+$/);
    assert.equal(parsed.find(({ message }) => message === 'call answered').call, callId);
    const ended = parsed.find(({ message }) => message === 'call ended');
    assert.deepEqual([ended.call, ended.reason, ended.target], [callId, 'completed', 'switchboard::calls']);
  });

  test('says of what is refused which field is at fault, and why', async (t) => {
    const { server, caller } = await afterCall(t, { SWITCHBOARD_LOG_FORMAT: 'json' });
    assertRefused(await caller.ack('call:initiate', { toUserId: someone('ben'), callType: 'smoke' }), 'INVALID_PAYLOAD');
    const refused = await eventually(
      () => server.logs().trimEnd().split('\n').map((line) => JSON.parse(line)).find(({ field }) => field === 'callType'),
      'the log tells of it',
    );
    assert.equal(refused.error, 'INVALID_PAYLOAD');
    assert.match(refused.reason, /^callType: expected/);
  });

  test('in JSON has also why a server could not start', async (t) => {
    const { server } = await afterCall(t, {}, {});
    const env = { SWITCHBOARD_LOG_FORMAT: 'json' };
    const { code, stderr } = await runToExit(['--listen', `127.0.0.1:${server.port}`], { env });
    assert.equal(code, 1);
    const { level, message } = JSON.parse(stderr);
    assert.equal(level, 'ERROR');
    assert.match(message, /cannot listen on 127\.0\.0\.1:/);
  });

  test('holds nobody up if its reader stands still, and says how many lines that cost', async (t) => {
    const server = await startServer({ env: DEBUG });
    t.after(() => server.stop());
    const { stderr } = server.process.child;
    stderr.pause();
    const one = await join(t, server, { userId: someone('carl') });
    for (let sent = 0; sent < 80; sent += 1) {
      await Promise.all(Array.from({ length: 100 }, () => one.ack('call:initiate', { toUserId: 'x'.repeat(200) })));
    }
    const { caller, callee } = await activeCall(t, server);
    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
    const dropped = (await scrape(server)).value('switchboard_log_lines_dropped_total');
    assert.ok(dropped > 0, `${dropped} lines were dropped`);
    stderr.resume();
    await eventually(() => /log lines were dropped.* lines=\d+/.test(server.logs()), 'the log tells how many');
  });

  test('names users as hashes if told so: the lines of one user can still be found', async (t) => {
    const settings = { SWITCHBOARD_LOG_FORMAT: 'json', SWITCHBOARD_LOG_USERS: 'hashed' };
    const one = await afterCall(t, settings);
    for (const { userId } of [one.caller, one.callee]) assert.ok(!one.lines.join().includes(userId), userId);
    const [caller, callee] = joinedIn(one.lines);
    assert.match(caller, /^[0-9a-f]{16}$/);
    assert.notEqual(caller, callee);
    await join(t, one.server, { userId: one.caller.userId });
    await eventually(() => joinedIn(one.server.logs().trimEnd().split('\n'))[2] === caller, 'the same hash again');
  });

  test('hashes with a key of each process, or with a common one', async (t) => {
    const userId = someone('anna');
    const hash = async (key) => {
      const env = { ...DEBUG, SWITCHBOARD_LOG_FORMAT: 'json', SWITCHBOARD_LOG_USERS: 'hashed', ...key };
      const server = await startServer({ env });
      t.after(() => server.stop());
      await join(t, server, { userId });
      return eventually(() => joinedIn(server.logs().trimEnd().split('\n'))[0], 'it joined');
    };
    const common = { SWITCHBOARD_LOG_USERS_KEY: 'sesame' };
    const [one, other, again, random, another] = await Promise.all([common, common, { SWITCHBOARD_LOG_USERS_KEY: 'x' }, {}, {}].map(hash));
    assert.equal(one, other);
    assert.equal(new Set([one, again, random, another]).size, 4);
  });

  test('no filter has libraries write what passes through them: tokens, relay passwords, SDP, users', async (t) => {
    const LOUD = [
      'trace', 'tungstenite::protocol=trace', 'tungstenite::protocol::frame=trace', 'tokio_tungstenite=trace', 'engineioxide=trace',
      'socketioxide=trace', 'socketioxide::ns=trace', 'hyper=trace', 'sqlx=trace', 'sqlx::query=debug', 'h2=trace', 'fred=trace', 'rustls=trace', 'log=trace',
    ].join(',');
    const settings = {
      ...JWT, SWITCHBOARD_LOG_FORMAT: 'json', SWITCHBOARD_LOG_USERS: 'hashed',
      SWITCHBOARD_TURN_URLS: 'turn:127.0.0.1:3478', SWITCHBOARD_TURN_SECRET: 'hidden-turn-secret',
    };
    const loudFromStart = await startServer({ env: { ...settings, RUST_LOG: LOUD } });
    t.after(() => loudFromStart.stop());
    const loudLater = await startServer({ env: { ...settings, RUST_LOG: 'trace' } });
    t.after(() => loudLater.stop());
    const told = await fetch(`${loudLater.adminUrl}/log`, { method: 'PUT', body: LOUD });
    assert.equal(told.status, 200);
    for (const server of [loudFromStart, loudLater]) {
      const users = [someone('anna'), someone('ben')];
      const tokens = users.map((userId) => tokenOf(userId));
      const [caller, callee] = await Promise.all(tokens.map((token, n) => join(t, server, { userId: users[n], auth: { token } })));
      await caller.ok('call:initiate', { toUserId: users[1], callType: 'audio' });
      const sdp = `v=0 ${someone('sdp')}`;
      await caller.ok('call:offer', { toUserId: users[1], offer: { ...offer(), sdp } });
      await callee.next('call:offer');
      const { iceServers } = await caller.ok('ice:servers', {});
      const credential = iceServers.find((one) => one.credential).credential;
      await caller.ok('call:end', { toUserId: users[1] });
      await eventually(() => /"call ended"/.test(server.logs()), 'the log tells of the end');
      for (const secret of [...users, ...tokens, sdp, credential, 'hidden-turn-secret']) {
        assert.ok(!server.logs().includes(secret), `${secret}:\n${server.logs()}`);
      }
      const lines = server.logs().trimEnd().split('\n').map((line) => JSON.parse(line));
      const loud = lines.filter(({ level, target }) => /^(DEBUG|TRACE)$/.test(level) && !/^switchboard(::|$)/.test(target));
      assert.deepEqual(loud, []);
      assert.ok(lines.some(({ level, target }) => level === 'DEBUG' && target.startsWith('switchboard')), 'its own lines are there');
    }
  });
});
