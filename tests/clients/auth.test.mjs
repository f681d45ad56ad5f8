// Authentication and expiry in `jwt` mode.

import assert from 'node:assert/strict';
import { createHmac, generateKeyPairSync, sign } from 'node:crypto';
import { once } from 'node:events';
import { execFileSync } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { join as joinPath } from 'node:path';
import { after, describe, test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { answer, assertTalking, dial, offer, pickUp } from '../support/calls.mjs';
import { assertError, assertRefused, assertShape, eventually, isIn, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { assertProblem, post } from '../support/http.mjs';
import { checkerOf, documentOf } from '../support/schemas.mjs';
import { ONE_NODE, privateFolder, runToExit, startServer } from '../support/server.mjs';
import { JWT, SECRET, tokenOf } from '../support/tokens.mjs';

const server = await startServer({ env: { ...JWT, RUST_LOG: 'debug' } });
after(() => server.stop());

const CALL = '01890a5d-ac96-774b-bcce-b302099a8057';

/** A device of a user with a token of its own. */
async function joinWith(t, token, userId, options = {}) {
  const client = connect(t, server, { auth: { token, ...options.auth }, ...options.socket });
  client.userId = userId;
  await client.connected();
  await client.fence();
  return client;
}

const joined = (t, name, { seconds, ...options } = {}) => {
  const userId = someone(name);
  return joinWith(t, tokenOf(userId, { seconds }), userId, options);
};

/** Refreshes the client's token with one that expires after this many seconds. */
async function shorten(client, seconds) {
  const { expiresAt } = await client.ok('auth:refresh', { token: tokenOf(client.userId, { seconds }) });
  return expiresAt;
}

/** The client is refused, and gets the reason. */
async function refused(t, options, message) {
  const client = connect(t, server, options);
  const said = await client.next('connect_error');
  assert.match(said, message);
  for (const secret of [options.auth?.token, SECRET].filter(Boolean)) assert.ok(!said.includes(secret), said);
  assert.equal(client.socket.connected, false);
}

/** A server for tests with other keys. */
async function serverWith(t, env) {
  const own = await startServer({ env: { SWITCHBOARD_AUTH: 'jwt', ...env } });
  t.after(() => own.stop());
  return own;
}

for (const transport of ['websocket', 'polling']) {
  describe(`a token on ${transport}`, { concurrency: true }, () => {
    const socket = { transports: [transport] };

    test('says who the user is', async (t) => {
      const anna = await joined(t, 'anna', { socket });
      const ben = await joined(t, 'ben', { socket });
      await dial(anna, ben);
      await pickUp(ben, anna);
      await assertTalking(anna, ben);
      const same = await anna.ok('user-connected', anna.userId);
      assert.equal(same.userId, anna.userId);
    });

    test('may be in the head of the handshake', async (t) => {
      const userId = someone('anna');
      const extraHeaders = { Authorization: `bearer ${tokenOf(userId)}` };
      const client = connect(t, server, { extraHeaders, ...socket });
      await client.connected();
      assert.deepEqual((await client.ok('user-connected', userId)).userId, userId);
      await refused(t, { extraHeaders: { Authorization: 'Bearer a.b.c' }, ...socket }, /^UNAUTHENTICATED: the token is not a JWT/);
      await refused(t, { extraHeaders: { Authorization: 'Basic YTpi' }, ...socket }, /^UNAUTHENTICATED: a token is needed$/);
    });

    test('may have the scheme of that head with it', async (t) => {
      const userId = someone('anna');
      const client = connect(t, server, { auth: { token: `Bearer ${tokenOf(userId)}` }, ...socket });
      await client.connected();
      assert.equal((await client.ok('user-connected', userId)).userId, userId);
      await client.ok('auth:refresh', { token: `bearer ${tokenOf(userId, { seconds: 600 })}` });
      await refused(t, { auth: { token: 'Bearer a.b.c' }, ...socket }, /^UNAUTHENTICATED: the token is not a JWT/);
    });

    test('may name its user by a number', async (t) => {
      const sub = 1_000_000 + Math.trunc(Math.random() * 1e9);
      const client = connect(t, server, { auth: { token: tokenOf(sub), userId: sub }, ...socket });
      await client.connected();
      assert.equal((await client.ok('user-connected', sub)).userId, `${sub}`);
      await refused(t, { auth: { token: tokenOf(1.5) }, ...socket }, /^UNAUTHENTICATED: the token's sub is not a user id/);
    });

    test('that is missing, bad or over: refused before the socket connects', async (t) => {
      const sub = someone('anna');
      const forged = tokenOf(sub, { sign: (body) => createHmac('sha256', 'x'.repeat(32)).update(body).digest() });
      const unsigned = tokenOf(sub, { header: { alg: 'none' }, sign: () => Buffer.alloc(0) });
      for (const [auth, message] of [
        [undefined, /^UNAUTHENTICATED: a token is needed$/],
        [{ userId: sub }, /^UNAUTHENTICATED: a token is needed$/],
        [{ token: 'nonsense' }, /^UNAUTHENTICATED: the token is not a JWT/],
        [{ token: unsigned }, /^UNAUTHENTICATED: the token is not a JWT/],
        [{ token: forged }, /^UNAUTHENTICATED: the token's signature is wrong$/],
        [{ token: tokenOf(sub, { seconds: -11 }) }, /^UNAUTHENTICATED: the token has expired$/],
        [{ token: tokenOf(sub, { nbf: Date.now() / 1_000 + 60 }) }, /^UNAUTHENTICATED: the token is not valid yet$/],
        [{ token: tokenOf('') }, /^UNAUTHENTICATED: the token's sub is not a user id/],
        [{ token: 7 }, /^INVALID_PAYLOAD: token/],
      ]) {
        await refused(t, { auth, ...socket }, message);
      }
    });

    test("is nobody else's", async (t) => {
      const userId = someone('anna');
      await refused(t, { auth: { token: tokenOf(userId), userId: someone('ben') }, ...socket }, /^FORBIDDEN: /);
      const anna = await joinWith(t, tokenOf(userId), userId, { auth: { userId }, socket });
      assertRefused(await anna.ack('user-connected', someone('ben')), 'FORBIDDEN');
    });
  });
}

describe('a token with an end', { concurrency: true }, () => {
  test('is warned of; without a new one the socket is closed', async (t) => {
    const anna = connect(t, server, { auth: { token: tokenOf(someone('anna'), { seconds: 2 }) } });
    const warning = await anna.next('auth:expiring');
    assertShape(warning, { expiresAt: isIn(2_000) });
    assert.equal(await anna.next('disconnect'), 'io server disconnect');
    assert.ok(Date.now() >= warning.expiresAt, 'not before the end');
    const others = anna.names.filter((name) => name === 'auth:expiring');
    assert.equal(others.length, 1, 'once is enough');
  });

  test('that was let in by the leeway ends with it', async (t) => {
    const anna = connect(t, server, { auth: { token: tokenOf(someone('anna'), { seconds: -7 }) } });
    const { expiresAt } = await anna.next('auth:expiring');
    assert.ok(expiresAt > Date.now(), 'the end is still to come');
    assert.equal(await anna.next('disconnect'), 'io server disconnect');
  });

  test('is renewed by another of the same user', async (t) => {
    const anna = await joined(t, 'anna', { seconds: 600 });
    await shorten(anna, 5);
    const { expiresAt } = await anna.next('auth:expiring');
    const token = tokenOf(anna.userId, { seconds: 600 });
    const renewed = await anna.ok('auth:refresh', { token });
    assertShape(renewed, { ok: true, expiresAt: isIn(600_000) });
    await eventually(() => Date.now() > expiresAt + 500, 'the first token is over');
    await anna.ok('presence:subscribe', { userIds: [anna.userId] });
    await anna.none('auth:expiring');
    await anna.none('disconnect');
  });

  test('is not renewed by a bad one, or by another user’s', async (t) => {
    const anna = await joined(t, 'anna');
    const forged = tokenOf(anna.userId, { sign: () => Buffer.alloc(32) });
    const ofOther = tokenOf(someone('ben'));
    for (const [payload, type] of [
      [{ token: forged }, 'UNAUTHENTICATED'],
      [{ token: tokenOf(anna.userId, { seconds: -60 }) }, 'UNAUTHENTICATED'],
      [{ token: 'nonsense' }, 'UNAUTHENTICATED'],
      [{ token: ofOther }, 'FORBIDDEN'],
      [{}, 'INVALID_PAYLOAD'],
      [{ token: 7 }, 'INVALID_PAYLOAD'],
      [{ token: 'x'.repeat(8_193) }, 'PAYLOAD_TOO_LARGE'],
    ]) {
      const refusal = await anna.ack('auth:refresh', payload);
      assertRefused(refusal, type, { event: 'auth:refresh' });
      assert.ok(!payload.token || !refusal.error.message.includes(payload.token), refusal.error.message);
    }
    anna.emit('auth:refresh', { token: forged });
    assertError(await anna.next('call:error'), 'UNAUTHENTICATED');
    await anna.fence();
  });

  test('leaves a live call alone, and nothing else', async (t) => {
    const anna = await joined(t, 'anna');
    const ben = await joined(t, 'ben');
    const carol = await joined(t, 'carol');
    await anna.ok('presence:subscribe', { userIds: [carol.userId] });
    const dave = await joined(t, 'dave');
    const earlier = await dial(anna, dave);
    await anna.ok('call:end', { toUserId: dave.userId });
    const { callId } = await dial(anna, ben);
    await pickUp(ben, anna);
    const expiresAt = await shorten(anna, 1);
    await eventually(() => Date.now() > expiresAt, 'the token is over');
    await eventually(async () => (await anna.ack('presence:unsubscribe', { userIds: [] })).ok === false, 'presence is refused');

    for (const [event, payload] of [
      ['call:initiate', { toUserId: carol.userId, callType: 'audio' }],
      ['presence:subscribe', { userIds: [ben.userId] }],
      ['ice:servers', {}],
      ['user-connected', anna.userId],
      ['call:sync', { callId: earlier.callId }],
      ['call:stats', { callId: earlier.callId, roundTripMs: 1 }],
      ['call:end', { toUserId: dave.userId, callId: earlier.callId }],
    ]) {
      assertRefused(await anna.ack(event, payload), 'UNAUTHENTICATED', { event, mentions: 'expired' });
    }
    await assertTalking(anna, ben);
    const call = { toUserId: ben.userId, callId };
    await anna.ok('call:offer', { ...call, offer: offer('again') });
    await anna.ok('call:stats', { callId, roundTripMs: 1 });
    assert.equal((await anna.ok('call:sync', {})).call.callId, callId);
    assert.equal((await anna.ok('call:sync', { callId })).call.callId, callId);
    // The subscription has ended: this change would have been sent.
    await eventually(() => server.logs().includes('kept for its call'), 'its subscriptions are gone');
    carol.close();
    await ben.ok('presence:subscribe', { userIds: [carol.userId] });
    await eventually(async () => (await ben.ok('presence:subscribe', { userIds: [carol.userId] })).presence[carol.userId] === 'offline', 'carol is offline');
    assert.ok(!anna.names.includes('presence:update'), anna.names.join());
    assert.equal(anna.socket.connected, true);

    await anna.ok('call:end', { ...call });
    await ben.next('call:ended');
    assert.equal(await anna.next('disconnect'), 'io server disconnect');
  });

  test('may end while it rings: the call can be answered, and renewing gives all back', async (t) => {
    const ben = await joined(t, 'ben');
    const anna = await joined(t, 'anna');
    await dial(anna, ben);
    const expiresAt = await shorten(ben, 1);
    await eventually(() => Date.now() > expiresAt + 300, 'the token is over');
    await ben.ok('call:answer', { toUserId: anna.userId, answer: answer() });
    await anna.next('call:answer');
    await ben.ok('auth:refresh', { token: tokenOf(ben.userId) });
    await ben.ok('presence:subscribe', { userIds: [anna.userId] });
    await anna.ok('call:end', { toUserId: ben.userId });
    await ben.next('call:ended');
    // An expired socket would be checked within half a second.
    await wait(800);
    await ben.ok('ice:servers', {});
  });
});

test('tokens end for hundreds of sockets together', async (t) => {
  const clients = await Promise.all(Array.from({ length: 300 }, () => joined(t, 'one', { seconds: 600 })));
  await Promise.all(clients.map((client) => shorten(client, 2)));
  for (const client of clients) {
    assert.equal(await client.next('disconnect'), 'io server disconnect');
  }
});

describe('over HTTP', { concurrency: true }, () => {
  const ask = (path, token, query = {}) => {
    const url = new URL(path, server.url);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return fetch(url, token === undefined ? {} : { headers: { Authorization: `Bearer ${token}` } });
  };
  const period = { since: 0, until: 1 };

  test('401 without a good token, and how to give one', async () => {
    const all = ['/v1/calls', `/v1/calls/${CALL}`, `/v1/calls/${CALL}/timeline`, '/v1/stats', '/v1/presence', '/v1/ice-servers', '/v1/admin/calls'];
    for (const path of all) {
      const missing = await ask(path, undefined, { userId: 'anna' });
      assert.equal(missing.headers.get('www-authenticate'), 'Bearer', path);
      await assertProblem(missing, 401);
      const forged = tokenOf('anna', { sign: () => Buffer.alloc(32) });
      const bad = await ask(path, forged);
      assert.equal(bad.headers.get('www-authenticate'), 'Bearer error="invalid_token"', path);
      assert.ok(!(await bad.clone().text()).includes(forged));
      await assertProblem(bad, 401);
      await assertProblem(await ask(path, tokenOf('anna', { seconds: -60 })), 401);
    }
    for (const path of [`/v1/admin/calls/${CALL}/end`, '/v1/admin/users/anna/disconnect']) {
      await assertProblem(await post(server, path), 401);
    }
  });

  test('the page and the documents are public', async () => {
    for (const path of ['/', '/docs', '/openapi.json', '/asyncapi.json', '/socket.io/socket.io.js']) {
      assert.equal((await ask(path)).status, 200, path);
    }
  });

  // Each node of a cluster without Postgres has a history of its own.
  test('one sees the own calls, and of other users nothing', ONE_NODE, async (t) => {
    const anna = await joined(t, 'anna');
    const ben = await joined(t, 'ben');
    const { callId } = await dial(anna, ben);
    await anna.ok('call:end', { toUserId: ben.userId });
    const own = tokenOf(anna.userId);
    const path = `/v1/calls/${callId}`;
    await eventually(async () => (await ask(path, own)).status === 200, 'the call is in history');
    for (const query of [{}, { userId: anna.userId }]) {
      const page = await (await ask('/v1/calls', own, query)).json();
      assert.deepEqual(page.calls.map(({ id }) => id), [callId]);
      assert.equal((await ask(`${path}/timeline`, own, query)).status, 200);
    }
    await assertProblem(await ask(path, tokenOf(someone('carol'))), 404);
    for (const asked of ['/v1/calls', path, `${path}/timeline`]) {
      const known = await ask(asked, own, { userId: ben.userId });
      const unknown = await ask(asked, own, { userId: someone('nobody') });
      assert.equal(await known.clone().text(), await unknown.text(), 'whether there is such a user is not told');
      await assertProblem(known, 403);
    }
    await assertProblem(await ask('/v1/calls', own, { userId: '' }), 400, 'userId');
    const admin = tokenOf(someone('admin'), { scope: 'admin' });
    assert.equal((await ask(path, admin, { userId: ben.userId })).status, 200);
  });

  test('scopes open the rest', async () => {
    const plain = tokenOf('anna');
    const stats = tokenOf('anna', { scopes: ['stats'] });
    const admin = tokenOf('anna', { scp: ['admin'] });
    const nobody = `/v1/admin/users/${someone('nobody')}/disconnect`;
    const send = (token) => fetch(new URL(nobody, server.url), { method: 'POST', headers: { Authorization: `Bearer ${token}` } });
    for (const [token, statuses] of [[plain, [200, 403, 403, 403]], [stats, [200, 200, 403, 403]], [admin, [200, 200, 200, 202]]]) {
      const found = [
        await ask('/v1/presence', token, { userIds: 'anna,ben' }),
        await ask('/v1/stats', token, period),
        await ask('/v1/admin/calls', token),
        await send(token),
      ];
      assert.deepEqual(found.map(({ status }) => status), statuses);
      for (const response of found.filter(({ status }) => status === 403)) await assertProblem(response, 403);
    }
  });

  test('the document says so', async () => {
    const document = await documentOf(server, '/openapi.json');
    const { problems } = checkerOf(document);
    assert.deepEqual(document.components.securitySchemes, { token: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' } });
    assert.deepEqual(document.security, [{ token: [] }]);
    for (const [path, item] of Object.entries(document.paths)) {
      for (const { responses, parameters = [] } of Object.values(item)) {
        assert.ok(responses['401'], path);
        assert.ok(responses['403'] || path === '/v1/presence', path);
        for (const one of parameters.filter(({ name }) => name === 'userId')) assert.ok(!one.required, path);
      }
    }
    const { schema } = document.paths['/v1/calls'].get.responses['401'].content['application/problem+json'];
    assert.deepEqual(problems(schema, await (await ask('/v1/calls')).json()), []);
  });
});

describe('keys', { concurrency: true }, () => {
  const JWS = {
    RS256: { kind: 'rsa', options: { modulusLength: 2048 }, sign: (key) => (body) => sign('sha256', body, key) },
    PS256: { kind: 'rsa', options: { modulusLength: 2048 }, sign: (key) => (body) => sign('sha256', body, { key, padding: 6, saltLength: 32 }) },
    ES256: { kind: 'ec', options: { namedCurve: 'P-256' }, sign: (key) => (body) => sign('sha256', body, { key, dsaEncoding: 'ieee-p1363' }) },
    EdDSA: { kind: 'ed25519', sign: (key) => (body) => sign(null, body, key) },
  };
  const signed = (alg, key, userId, kid) => {
    const signer = JWS[alg].sign(key);
    return tokenOf(userId, { header: { alg, kid }, sign: (body) => signer(Buffer.from(body)) });
  };
  const getIn = async (t, own, token, userId) => {
    const client = connect(t, own, { auth: { token } });
    await client.connected();
    assert.equal((await client.ok('user-connected', userId)).userId, userId);
  };

  for (const alg of Object.keys(JWS)) {
    test(`a public key for ${alg}`, async (t) => {
      const { publicKey, privateKey } = generateKeyPairSync(JWS[alg].kind, JWS[alg].options);
      const pem = publicKey.export({ type: 'spki', format: 'pem' });
      const own = await serverWith(t, { SWITCHBOARD_JWT_PUBLIC_KEY: pem });
      await getIn(t, own, signed(alg, privateKey, 'anna'), 'anna');
      const confused = tokenOf('anna', { sign: (body) => createHmac('sha256', pem).update(body).digest() });
      const client = connect(t, own, { auth: { token: confused } });
      assert.match(await client.next('connect_error'), /^UNAUTHENTICATED: .*algorithm/);
    });
  }

  test('a key set that is away when the node starts, comes, and changes', async (t) => {
    const pairs = { first: generateKeyPairSync('ed25519'), second: generateKeyPairSync('ec', { namedCurve: 'P-256' }) };
    let keys;
    const issuer = createServer((_, response) => {
      if (!keys) return response.writeHead(503).end();
      const jwks = keys.map((kid) => ({ ...pairs[kid].publicKey.export({ format: 'jwk' }), kid, use: 'sig' }));
      return response.end(JSON.stringify({ keys: jwks }));
    });
    issuer.listen(0, '127.0.0.1');
    await once(issuer, 'listening');
    t.after(() => issuer.close());
    const own = await serverWith(t, { SWITCHBOARD_JWKS_URL: `http://127.0.0.1:${issuer.address().port}/jwks.json` });
    assert.match(own.logs(), /keys of tokens cannot be fetched/);
    const token = signed('EdDSA', pairs.first.privateKey, 'anna', 'first');
    const asked = await fetch(`${own.url}/v1/presence?userIds=anna`, { headers: { Authorization: `Bearer ${token}` } });
    await assertProblem(asked, 503);
    const early = connect(t, own, { auth: { token }, reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 100 });
    await eventually(() => early.socket.io.engine?.readyState === 'closed', 'it is not let in');
    keys = ['first'];
    // The client retries by itself, and so does the server.
    await early.connected();
    await early.none('connect_error');
    assert.equal((await early.ok('user-connected', 'anna')).userId, 'anna');
  });

  test('a key set over HTTPS comes from one whom this machine trusts', async (t) => {
    const dir = await privateFolder();
    t.after(() => rm(dir, { recursive: true }));
    const [key, cert] = ['key.pem', 'cert.pem'].map((name) => joinPath(dir, name));
    const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key, '-out', cert, '-days', '2'];
    execFileSync('openssl', [...made, '-subj', '/CN=issuer', '-addext', 'subjectAltName=IP:127.0.0.1', '-addext', 'basicConstraints=critical,CA:FALSE'], { stdio: 'ignore' });
    const pair = generateKeyPairSync('ed25519');
    const jwks = JSON.stringify({ keys: [{ ...pair.publicKey.export({ format: 'jwk' }), kid: '1' }] });
    const issuer = createSecureServer({ key: await readFile(key), cert: await readFile(cert) }, (_, response) => response.end(jwks));
    issuer.listen(0, '127.0.0.1');
    await once(issuer, 'listening');
    t.after(() => issuer.close());
    const SWITCHBOARD_JWKS_URL = `https://127.0.0.1:${issuer.address().port}/jwks.json`;
    const trusting = await serverWith(t, { SWITCHBOARD_JWKS_URL, SSL_CERT_FILE: cert });
    await getIn(t, trusting, signed('EdDSA', pair.privateKey, 'anna', '1'), 'anna');
    const wary = await serverWith(t, { SWITCHBOARD_JWKS_URL });
    assert.match(wary.logs(), /cannot be fetched.*certificate/);
  });

  test('issuer and audience', async (t) => {
    const own = await serverWith(t, { SWITCHBOARD_JWT_SECRET: SECRET, SWITCHBOARD_JWT_ISSUER: 'https://id.example.org', SWITCHBOARD_JWT_AUDIENCE: 'calls' });
    await getIn(t, own, tokenOf('anna', { iss: 'https://id.example.org', aud: ['mail', 'calls'] }), 'anna');
    for (const [claims, message] of [
      [{ aud: 'calls' }, /issuer/],
      [{ iss: 'https://id.example.org' }, /audience/],
      [{ iss: 'https://id.example.org', aud: 'mail' }, /audience/],
    ]) {
      const client = connect(t, own, { auth: { token: tokenOf('anna', claims) } });
      assert.match(await client.next('connect_error'), message);
    }
  });
});

describe('the token command', { concurrency: true }, () => {
  const env = { ...JWT, SWITCHBOARD_JWT_ISSUER: 'us', SWITCHBOARD_JWT_AUDIENCE: 'calls' };

  test('makes one that the server takes', async (t) => {
    const own = await serverWith(t, env);
    const { code, stdout, stderr } = await runToExit(['token', '--user', 'anna', '--ttl', '5m', '--scope', 'stats', '--scope', 'admin'], { env });
    assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
    const headers = { Authorization: `Bearer ${stdout.trim()}` };
    assert.equal((await fetch(`${own.url}/v1/admin/calls`, { headers })).status, 200);
    const client = connect(t, own, { auth: { token: stdout.trim() } });
    await client.connected();
    const payload = JSON.parse(Buffer.from(stdout.split('.')[1], 'base64url'));
    assert.equal(payload.scope, 'stats admin');
    assert.equal(payload.exp - payload.iat, 300, JSON.stringify(payload));
  });

  test('says in one sentence why there is none', async () => {
    for (const [args, settings] of [
      [['--user', 'anna'], {}],
      [['--user', 'anna'], { SWITCHBOARD_JWT_PUBLIC_KEY: '/dev/null' }],
      [['--user', 'anna'], { SWITCHBOARD_AUTH: 'open' }],
      [['--user', 'anna'], { SWITCHBOARD_JWT_SECRET: 'short' }],
      [['--user', ''], JWT],
      [[], JWT],
      [['--user', 'anna', '--ttl', 'soon'], JWT],
    ]) {
      const { code, stdout, stderr } = await runToExit(['token', ...args], { env: settings });
      assert.deepEqual([code, stdout], [1, ''], stderr);
      assert.match(stderr, /^error: [^\n]+\n$/);
      assert.ok(!stderr.includes(SECRET) && !stderr.includes('short'), stderr);
    }
  });
});

test('no secret and no token is in the logs, however much is logged', async (t) => {
  const own = await startServer({ env: { ...JWT, RUST_LOG: 'trace' } });
  t.after(() => own.stop());
  const token = tokenOf('anna');
  const client = connect(t, own, { auth: { token } });
  await client.connected();
  await client.ok('auth:refresh', { token });
  await fetch(`${own.url}/v1/calls`, { headers: { Authorization: `Bearer ${token}` } });
  const inHead = connect(t, own, { extraHeaders: { Authorization: `Bearer ${token}` }, transports: ['polling'] });
  await inHead.connected();
  const bad = `${token}x`;
  const refusedOne = connect(t, own, { auth: { token: bad } });
  await refusedOne.next('connect_error');
  const [, claims, signature] = token.split('.');
  for (const hidden of [token, claims, signature, SECRET]) {
    const place = own.logs().indexOf(hidden);
    assert.ok(place < 0, own.logs().slice(Math.max(0, place - 300), place + 50));
  }
  assert.ok(own.logs().includes('DEBUG'), 'the server does log all that it can');
});
