// Credentials for a TURN server, tested against a real one.

import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { join as joinPath } from 'node:path';
import { after, describe, test } from 'node:test';
import { assertRefused, assertShape, isText, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { credentialOf, startCoturn } from '../support/coturn.mjs';
import { assertProblem, get } from '../support/http.mjs';
import { checkerOf, documentOf } from '../support/schemas.mjs';
import { privateFolder, runToExit, startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const STUN = 'stun:stun.example.org:3478';
const TTL_S = 600;
const [OLD, NEW, UNKNOWN] = ['old+secret/of=ours', 'new-secret', 'unknown-secret'];

const coturn = await startCoturn(OLD, NEW);
after(() => coturn.stop());
const server = await serverWith(OLD);
after(() => server.stop());

function serverWith(secrets) {
  const args = ['--stun-urls', STUN, '--turn-urls', `${coturn.url},turns:turn.example.org:5349`, '--turn-ttl', `${TTL_S}s`];
  return startServer({ args, env: { SWITCHBOARD_TURN_SECRET: secrets } });
}

async function overSocket(t, userId, from = server) {
  const client = await join(t, from, { userId });
  const { ok, ...given } = await client.ok('ice:servers');
  assert.ok(ok);
  return given;
}

async function overHttp(userId) {
  const response = await get(server, '/v1/ice-servers', { userId });
  assert.equal(response.status, 200, await response.clone().text());
  assert.equal(response.headers.get('cache-control'), 'no-store');
  return response.json();
}

/** The TURN server in the reply. */
function turnOf({ iceServers, ttl }, user) {
  assert.equal(ttl, TTL_S);
  assert.equal(iceServers.length, 2, JSON.stringify(iceServers));
  assert.deepEqual(iceServers[0], { urls: [STUN] });
  const turn = iceServers[1];
  assertShape(turn, { urls: [coturn.url, 'turns:turn.example.org:5349'], username: isText, credential: isText });
  const [expiry, name] = turn.username.split(/:(.*)/s);
  assert.equal(name, user);
  const left = Number(expiry) - Date.now() / 1_000;
  assert.ok(Math.abs(left - TTL_S) < 30, `it expires when its time is over: ${left} s`);
  return turn;
}

describe('TURN credentials', { concurrency: true }, () => {
  for (const [where, ask] of [
    ['over the socket', overSocket],
    ['over HTTP', (_, userId) => overHttp(userId)],
  ]) {
    test(`given ${where} open the relay; altered, they do not`, async (t) => {
      const user = someone('alice');
      const { username, credential } = turnOf(await ask(t, user), user);
      assert.equal(credential, credentialOf(username, OLD));
      assert.equal(await coturn.relays({ username, credential }), true);
      const later = username.replace(/^\d+/, (expiry) => Number(expiry) + 1);
      assert.equal(await coturn.relays({ username: later, credential }), false, 'a later expiry');
      assert.equal(await coturn.relays({ username, credential: credentialOf(username, UNKNOWN) }), false, 'another secret');
    });
  }

  test('expire', async () => {
    const username = `${Math.floor(Date.now() / 1_000) - 1}:alice`;
    assert.equal(await coturn.relays({ username, credential: credentialOf(username, OLD) }), false);
  });

  test('are also for users whose ids coturn would refuse', async (t) => {
    const user = `${someone('Ann')} "O'Brien" – é`;
    const turn = turnOf(await overSocket(t, user), encodeURIComponent(user).replaceAll("'", '%27'));
    assert.equal(await coturn.relays(turn), true);
  });

  test('of the new secret work as well while secrets change, and only the first one signs', async (t) => {
    const user = someone('alice');
    const renewed = await serverWith(`${NEW},${OLD}`);
    t.after(() => renewed.stop());
    const turn = turnOf(await overSocket(t, user, renewed), user);
    assert.equal(turn.credential, credentialOf(turn.username, NEW));
    assert.equal(await coturn.relays(turn), true);

    const afterwards = await startCoturn(NEW);
    t.after(() => afterwards.stop());
    assert.equal(await afterwards.relays(turn), true);
    assert.equal(await afterwards.relays(turnOf(await overHttp(user), user)), false, 'the old secret is gone');
  });

  test('are for those who say who they are', async (t) => {
    const nobody = connect(t, server);
    await nobody.connected();
    assertRefused(await nobody.ack('ice:servers'), 'UNAUTHENTICATED');
    await assertProblem(await get(server, '/v1/ice-servers'), 400, 'userId');
  });

  test('are for the user that the token names', async (t) => {
    const strict = await startServer({ args: ['--turn-urls', coturn.url], env: { ...JWT, SWITCHBOARD_TURN_SECRET: OLD } });
    t.after(() => strict.stop());
    const [alice, bob] = [someone('alice'), someone('bob')];
    const ask = (query, token) => {
      const url = `${strict.url}/v1/ice-servers?${new URLSearchParams(query)}`;
      return fetch(url, token && { headers: { Authorization: `Bearer ${token}` } });
    };
    await assertProblem(await ask({ userId: alice }), 401);
    await assertProblem(await ask({ userId: bob }, tokenOf(alice)), 403);
    for (const query of [{}, { userId: alice }]) {
      const { iceServers } = await (await ask(query, tokenOf(alice))).json();
      assert.ok(iceServers[0].username.endsWith(`:${alice}`), iceServers[0].username);
      assert.equal(await coturn.relays(iceServers[0]), true);
    }
  });

  test('fit the documents', async (t) => {
    const user = someone('alice');
    const openapi = await documentOf(server, '/openapi.json');
    const { schema } = openapi.paths['/v1/ice-servers'].get.responses['200'].content['application/json'];
    assert.deepEqual(checkerOf(openapi).problems(schema, await overHttp(user)), []);
    const asyncapi = await documentOf(server, '/asyncapi.json');
    const ack = asyncapi.components.messages['ack.IceServers'].payload;
    assert.deepEqual(checkerOf(asyncapi).problems(ack, { ok: true, ...(await overSocket(t, user)) }), []);
    assert.deepEqual(Object.keys(asyncapi.components.schemas.IceServer.properties).sort(), ['credential', 'urls', 'username']);
  });
});

describe('the secret', { concurrency: 4 }, () => {
  test('is printed nowhere', async (t) => {
    const args = ['--turn-urls', coturn.url];
    const { code, stdout, stderr } = await runToExit(['config', ...args, '--turn-secret', `${OLD},${NEW}`]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^turn_secret = \["\*\*\*", "\*\*\*"\]$/m);
    assert.match(stdout, /^turn_ttl = "1h"$/m);
    assert.doesNotMatch(stdout, /secret\/of|new-secret/);
    const help = await runToExit(['--help'], { env: { SWITCHBOARD_TURN_SECRET: OLD } });
    assert.doesNotMatch(help.stdout, /secret\/of/);

    const dir = await privateFolder();
    t.after(() => rm(dir, { recursive: true, force: true }));
    const file = joinPath(dir, 'switchboard.toml');
    for (const text of [`turn_secret = "${OLD}`, `turn_secret = [\n"${OLD}", 5]`, `turn_secret = {a = "${OLD}"}`]) {
      await writeFile(file, text);
      const broken = await runToExit(['config', '--config', file], { dir });
      assert.equal(broken.code, 1, broken.stdout);
      assert.ok(broken.stderr.includes(file) && !broken.stderr.includes('secret/of'), broken.stderr);
    }
  });

  test('is not in the logs', async (t) => {
    const talkative = await startServer({
      args: ['--turn-urls', coturn.url],
      env: { SWITCHBOARD_TURN_SECRET: 'never-in-logs', RUST_LOG: 'trace' },
    });
    t.after(() => talkative.stop());
    await join(t, talkative, { userId: someone('alice') });
    await get(talkative, '/v1/ice-servers', { userId: 'anna' });
    assert.ok(talkative.logs().length > 0);
    assert.doesNotMatch(talkative.logs(), /never-in-logs/);
  });

  const WRONG = [
    [['--turn-urls', 'turn:a'], 'turn_secret'],
    [['--turn-secret', 'a'], 'turn_urls'],
    [['--turn-urls', 'turn:a', '--turn-secret', ''], 'turn_secret'],
    [['--turn-urls', 'turn:a,http://b', '--turn-secret', 'a'], 'http://b'],
    [['--turn-urls', 'turn:a?transport=sctp', '--turn-secret', 'a'], 'transport'],
    [['--turn-urls', 'turn:a', '--turn-secret', 'a', '--turn-ttl', '1s'], 'turn_ttl'],
    [['--turn-urls', 'turn:a', '--turn-secret', 'a', '--turn-ttl', '2d'], 'turn_ttl'],
    [['--stun-urls', 'stun:a b'], 'stun_urls'],
  ];
  for (const [args, mentions] of WRONG) {
    test(`cannot be used as in ${args.join(' ')}`, async () => {
      const { code, stderr } = await runToExit(['config', ...args]);
      assert.equal(code, 1);
      assert.match(stderr, /^error: [^\n]+\n$/);
      assert.ok(stderr.includes(mentions), stderr);
    });
  }
});
