// Authorization of calls by the platform's backend.

import assert from 'node:assert/strict';
import { readFile, rm } from 'node:fs/promises';
import { after, describe, test } from 'node:test';
import { answer, held, no, startBackend, YES } from '../support/backend.mjs';
import { candidate, offer, pair } from '../support/calls.mjs';
import { makeCertificate } from '../support/certificate.mjs';
import { assertRefused, eventually, isIn, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { calls } from '../support/http.mjs';
import { ONE_NODE, privateFolder, runToExit, startServer } from '../support/server.mjs';

const TOKEN = 'the-backends-token';
const PATIENT = ['--authorize-timeout', '10s'];

const backend = await startBackend();
after(() => backend.stop());
const server = await serverWith(PATIENT);
after(() => server.stop());

function serverWith(args, { url = backend.url, env = {} } = {}) {
  return startServer({ args: ['--authorize-url', url, ...args], env: { SWITCHBOARD_AUTHORIZE_TOKEN: TOKEN, ...env } });
}

const call = (caller, callee, more = {}) => caller.ack('call:initiate', { toUserId: callee.userId, callType: 'audio', ...more });

async function hangUp(caller, callee) {
  await caller.ok('call:end', { toUserId: callee.userId });
}

function assertUnavailable(reply) {
  assertRefused(reply, 'TEMPORARILY_UNAVAILABLE');
  assert.ok(reply.error.retryAfterMs > 0, JSON.stringify(reply));
}

describe('a backend that answers', { concurrency: true }, () => {
  test('yes: it rings, and the backend was told who calls whom', async (t) => {
    const { caller, callee } = await pair(t, server);
    const callerInfo = { name: 'Alice', extra: [1] };
    const placed = await call(caller, callee, { callType: 'video', callerInfo });
    assert.ok(placed.ok && isIn(30_000)(placed.expiresAt), JSON.stringify(placed));
    await callee.next('call:incoming');
    const [from, to] = [caller.userId, callee.userId];
    assert.deepEqual(backend.asked(from), [{ from, to, callType: 'video', callerInfo }]);
    for (const { method, url, headers } of backend.requests) {
      assert.deepEqual([method, url], ['POST', '/may-call']);
      assert.equal(headers['content-type'], 'application/json');
      assert.equal(headers.authorization, `Bearer ${TOKEN}`);
    }
  });

  test('no: the caller hears why, the callee nothing, and there is no row', async (t) => {
    const { caller, callee } = await pair(t, server);
    backend.answers(caller.userId, no('Ben has blocked you'));
    const toUserId = callee.userId;
    assertRefused(await call(caller, callee), 'FORBIDDEN', { message: 'Ben has blocked you', toUserId, event: 'call:initiate' });
    caller.emit('call:initiate', { toUserId, callType: 'audio' });
    assert.equal((await caller.next('call:error')).message, 'Ben has blocked you');
    await callee.nothingElse({ after: [caller] });
    assert.deepEqual(await calls(server, caller.userId), []);

    backend.answers(caller.userId, YES);
    assert.ok((await call(caller, callee)).ok, 'a no is not kept');
  });

  test('no: a reason is passed on as short plain text, and may be left out', async (t) => {
    const { caller, callee } = await pair(t, server);
    for (const [reason, message] of [
      ['ö'.repeat(1_000), 'ö'.repeat(256)],
      ['two\nlines\u0000', 'two lines'],
      [undefined, 'You may not call this user'],
      ['', 'You may not call this user'],
    ]) {
      backend.answers(caller.userId, no(reason));
      assertRefused(await call(caller, callee), 'FORBIDDEN', { message });
    }
  });

  test('a yes is good for a while: for the same question, callerInfo included', async (t) => {
    const { caller, callee } = await pair(t, server);
    const other = await join(t, server, { userId: someone('carol') });
    for (const [to, more, questions] of [
      [callee, {}, 1],
      [callee, {}, 1],
      [callee, { callType: 'video' }, 2],
      [other, {}, 3],
      [callee, {}, 3],
      [callee, { callerInfo: { name: 'Anna' } }, 4],
      [callee, { callerInfo: { name: 'Anna' }, clientCallId: someone('c') }, 4],
      [callee, { callerInfo: { name: 'Your bank' } }, 5],
    ]) {
      assert.ok((await call(caller, to, more)).ok);
      assert.equal(backend.asked(caller.userId).length, questions);
      await hangUp(caller, to);
    }
  });

  test('a yes does not let another name ring through', async (t) => {
    const { caller, callee } = await pair(t, server);
    assert.ok((await call(caller, callee, { callerInfo: { name: 'Anna' } })).ok);
    await hangUp(caller, callee);
    await callee.next('call:ended');
    backend.answers(caller.userId, no('That is not your name'));
    assertRefused(await call(caller, callee, { callerInfo: { name: 'Your bank' } }), 'FORBIDDEN', { message: 'That is not your name' });
    assert.equal(callee.log.filter(({ event }) => event === 'call:incoming').length, 1);
  });

  test('a yes is good for as long as is set', async (t) => {
    const brief = await serverWith([...PATIENT, '--authorize-cache', '300ms']);
    t.after(() => brief.stop());
    const { caller, callee } = await pair(t, brief);
    const dial = async () => {
      assert.ok((await call(caller, callee)).ok);
      await hangUp(caller, callee);
      return backend.asked(caller.userId).length;
    };
    assert.equal(await dial(), 1);
    await eventually(async () => (await dial()) === 2, 'the backend is asked again');

    const never = await serverWith([...PATIENT, '--authorize-cache', '0s']);
    t.after(() => never.stop());
    const { caller: one, callee: two } = await pair(t, never);
    for (const questions of [1, 2]) {
      assert.ok((await call(one, two)).ok);
      await hangUp(one, two);
      assert.equal(backend.asked(one.userId).length, questions);
    }
  });

  test('it is not asked about what the rules refuse, nor about an attempt that was made before', async (t) => {
    const asking = await serverWith([...PATIENT, '--authorize-cache', '0s']);
    t.after(() => asking.stop());
    const { caller, callee } = await pair(t, asking);
    assertRefused(await call(caller, caller), 'SELF_CALL');
    assert.equal(backend.asked(caller.userId).length, 0);
    const placed = await call(caller, callee, { clientCallId: 'once' });
    backend.answers(caller.userId, no('not any more'));
    assert.equal((await call(caller, callee, { clientCallId: 'once' })).callId, placed.callId);
    assertRefused(await call(caller, callee, { callType: 'video' }), 'CALL_IN_PROGRESS');
    assertRefused(await call(callee, caller), 'GLARE');
    assert.equal(backend.asked(caller.userId).length, 1);
    assert.equal(backend.asked(callee.userId).length, 0);
  });

  test('while it thinks, others call, and what the caller sends stays in order', async (t) => {
    const { caller, callee } = await pair(t, server);
    const thinking = held();
    backend.answers(caller.userId, thinking.answers);
    const toUserId = callee.userId;
    const placed = call(caller, callee);
    caller.emit('call:offer', { toUserId, offer: offer() });
    for (const n of [1, 2, 3]) caller.emit('call:ice-candidate', { toUserId, candidate: candidate(n) });
    await thinking.asked;

    const others = await pair(t, server);
    assert.ok((await call(others.caller, others.callee)).ok);
    await others.callee.next('call:incoming');
    await callee.nothingElse();
    assert.deepEqual(caller.unread, []);

    thinking.release();
    assert.ok((await placed).ok);
    await callee.nextFew('call:ice-candidate', 3);
    const came = callee.log.filter(({ event }) => event.startsWith('call:'));
    assert.deepEqual(came.map(({ event }) => event), ['call:incoming', 'call:offer', ...Array(3).fill('call:ice-candidate')]);
    assert.deepEqual(came.slice(2).map(({ payload }) => payload.candidate), [1, 2, 3].map(candidate));
  });

  test('what it said is held against what has become of the users since', async (t) => {
    const { caller, callee } = await pair(t, server);
    const thinking = held();
    backend.answers(caller.userId, thinking.answers);
    const placed = call(caller, callee);
    await thinking.asked;
    callee.close();
    const watcher = await join(t, server, { userId: someone('watcher') });
    const userIds = [callee.userId];
    await eventually(async () => (await watcher.ok('presence:subscribe', { userIds })).presence[callee.userId] === 'offline', 'gone');
    thinking.release();
    assertRefused(await placed, 'RECIPIENT_OFFLINE');
  });

  test('it is asked by so many at a time', ONE_NODE, async (t) => {
    const counted = await startBackend();
    t.after(() => counted.stop());
    const busy = await serverWith(PATIENT, { url: counted.url });
    t.after(() => busy.stop());
    const callee = await join(t, busy, { userId: someone('ben') });
    const callers = await Promise.all(Array.from({ length: 80 }, (_, n) => join(t, busy, { userId: someone(`alice${n}`) })));
    const thinking = held();
    for (const { userId } of callers) counted.answers(userId, thinking.answers);
    const placed = Promise.all(callers.map((caller) => call(caller, callee)));
    await eventually(() => counted.questions.length >= 64, 'all places are taken');
    thinking.release();
    assert.ok((await placed).every(({ ok }) => ok));
    assert.equal(counted.questions.length, 80);
    assert.equal(counted.mostAtOnce, 64);
  });
});

describe('a backend that gives no answer', { concurrency: true }, () => {
  const HUGE = JSON.stringify({ allow: true, more: 'x'.repeat(100_000) });
  const NO_ANSWERS = {
    'nothing in time': () => {},
    'what is no JSON': (response) => answer(response, 'yes'),
    'neither yes nor no': (response) => answer(response, {}),
    'a yes that is no boolean': (response) => answer(response, { allow: 'true' }),
    'an error': (response) => answer(response, { allow: true }, { status: 500 }),
    'a redirect': (response) => answer(response, { allow: true }, { status: 307, headers: { location: '/elsewhere' } }),
    'a redirect to a GET': (response) => answer(response, '', { status: 303, headers: { location: '/elsewhere' } }),
    'too much': (response) => answer(response, HUGE),
    'an answer that breaks off': (response) => {
      response.writeHead(200, { 'content-length': 100 });
      response.write('{"allow": true}');
      setImmediate(() => response.destroy());
    },
  };

  test('closes the way: the caller is told to try again', async (t) => {
    const strict = await serverWith(['--authorize-timeout', '500ms']);
    t.after(() => strict.stop());
    const { caller, callee } = await pair(t, strict);
    for (const [what, how] of Object.entries(NO_ANSWERS)) {
      backend.answers(caller.userId, how);
      const reply = await call(caller, callee);
      assert.equal(reply.ok, false, what);
      assertUnavailable(reply);
    }
    await callee.nothingElse({ after: [caller] });
    assert.deepEqual(backend.requests.filter(({ url }) => url === '/elsewhere'), [], 'no redirect is followed');
    backend.answers(caller.userId, YES);
    assert.ok((await call(caller, callee)).ok);
  });

  test('opens it, if so set; a no is still a no', async (t) => {
    const lenient = await serverWith(['--authorize-timeout', '500ms', '--authorize-fail', 'open']);
    t.after(() => lenient.stop());
    const { caller, callee } = await pair(t, lenient);
    for (const [what, how] of Object.entries(NO_ANSWERS)) {
      backend.answers(caller.userId, how);
      assert.ok((await call(caller, callee)).ok, what);
      await hangUp(caller, callee);
    }
    backend.answers(caller.userId, no('no'));
    assertRefused(await call(caller, callee), 'FORBIDDEN', { message: 'no' });
  });

  for (const fail of ['closed', 'open']) {
    test(`because it is down, with ${fail}: said once in the log, and over when it is back`, async (t) => {
      const away = await startBackend();
      const asking = await serverWith(['--authorize-fail', fail, '--authorize-cache', '0s'], { url: `${away.url}?key=hidden` });
      t.after(() => asking.stop());
      const { caller, callee } = await pair(t, asking);
      assert.ok((await call(caller, callee)).ok);
      await hangUp(caller, callee);
      await away.stop();
      for (let time = 0; time < 3; time += 1) {
        const reply = await call(caller, callee);
        if (fail === 'closed') assertUnavailable(reply);
        else await hangUp(caller, callee);
      }
      const back = await startBackend({ port: away.port });
      t.after(() => back.stop());
      assert.ok((await call(caller, callee)).ok);
      assert.equal(back.asked(caller.userId).length, 1);
      // A line reaches stderr a moment after its event.
      await eventually(() => asking.logs().includes('the authorization backend answers again'), 'its return is logged');
      const logs = asking.logs();
      assert.equal(logs.match(/the authorization backend does not answer/g)?.length, 1, logs);
      assert.equal(logs.match(/the authorization backend answers again/g)?.length, 1, logs);
      assert.doesNotMatch(logs, new RegExp(`${TOKEN}|hidden`));
    });
  }

  test('because its certificate is nobody’s; one that is trusted is fine', async (t) => {
    const dir = await privateFolder();
    t.after(() => rm(dir, { recursive: true, force: true }));
    const { authority, certificate, key } = await makeCertificate(dir);
    const secure = await startBackend({ tls: { key: await readFile(key), cert: await readFile(certificate) } });
    t.after(() => secure.stop());
    for (const [env, isTrusted] of [
      [{}, false],
      [{ SSL_CERT_FILE: authority }, true],
    ]) {
      const asking = await serverWith(PATIENT, { url: secure.url, env });
      t.after(() => asking.stop());
      const { caller, callee } = await pair(t, asking);
      const reply = await call(caller, callee);
      if (isTrusted) assert.ok(reply.ok, JSON.stringify(reply));
      else assertUnavailable(reply);
      assert.equal(secure.asked(caller.userId).length, isTrusted ? 1 : 0);
    }
  });
});

describe('settings', { concurrency: 4 }, () => {
  const HOOK = ['--authorize-url', 'https://calls.example.org/may-call?key=hidden'];
  const WRONG = [
    [['--authorize-url', 'http://calls.example.org/'], 'authorize_url'],
    [['--authorize-url', 'https://anna:hidden@calls.example.org/'], 'authorize_url'],
    [['--authorize-url', ''], 'authorize_url'],
    [['--authorize-fail', 'open'], 'authorize_url'],
    [['--authorize-token', 'hidden'], 'authorize_url'],
    [[...HOOK, '--authorize-token', 'hidden hidden'], 'authorize_token'],
    [[...HOOK, '--authorize-timeout', '1h'], 'authorize_timeout'],
    [[...HOOK, '--authorize-cache', '1d'], 'authorize_cache'],
    [[...HOOK, '--authorize-fail', 'maybe'], 'authorize-fail'],
  ];
  for (const [args, mentions] of WRONG) {
    test(`that make no sense: ${args.join(' ')}`, async () => {
      const { code, stderr } = await runToExit(['config', ...args]);
      assert.equal(code, 1);
      assert.match(stderr, /^error: [^\n]+\n$/);
      assert.ok(stderr.includes(mentions) && !stderr.includes('hidden'), stderr);
    });
  }

  test('are printed without secrets', async () => {
    const { stdout } = await runToExit(['config', ...HOOK, '--authorize-token', 'hidden']);
    assert.match(stdout, /^authorize_url = "https:\/\/calls\.example\.org\/may-call\?\*\*\*"$/m);
    assert.match(stdout, /^authorize_token = "\*\*\*"$/m);
    assert.match(stdout, /^authorize_timeout = "1s"\nauthorize_cache = "10s"\nauthorize_fail = "closed"$/m);
    assert.doesNotMatch(stdout, /hidden/);
  });
});
