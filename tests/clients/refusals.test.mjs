// Refused connections: invalid tokens, origins, hosts and handshakes. Each is counted by its reason, and the log names
// the address and the setting that would permit it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { request } from 'node:http';
import { after, describe, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { scrape } from '../support/metrics.mjs';
import { tcp } from '../support/raw.mjs';
import { ONE_NODE, startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const JSON_LOG = { SWITCHBOARD_LOG_FORMAT: 'json' };
const EIO = '/socket.io/?EIO=4&transport=polling';

const open = await startServer({ env: { ...JSON_LOG, SWITCHBOARD_HOSTS: 'calls.example.org,*.svc' } });
const strict = await startServer({ env: { ...JWT, ...JSON_LOG, SWITCHBOARD_JWT_ISSUER: 'me', SWITCHBOARD_CORS_ORIGINS: 'https://app.example.org' } });
after(() => Promise.all([open.stop(), strict.stop()]));

/** The response to a request with exactly this head. */
async function ask(base, path, headers = {}, method = 'GET') {
  const { hostname, port } = new URL(base);
  const sent = request({ host: hostname, port, path, headers, method, agent: false }).end();
  const upgraded = once(sent, 'upgrade').then(([head, socket]) => (socket.destroy(), [head]));
  const [response] = await Promise.race([once(sent, 'response'), upgraded]);
  if (response.statusCode === 101) return { status: 101, body: '' };
  let body = '';
  for await (const chunk of response.setEncoding('utf8')) body += chunk;
  return { status: response.statusCode, body };
}

const lines = (server) => server.logs().trimEnd().split('\n').map((line) => JSON.parse(line));
const told = (server, reason) => lines(server).filter((line) => line.message === 'turned away' && line.reason === reason);

/**
 * Runs `act` several times: each refusal is counted under `reason`, and the log has one line, which says what to
 * change.
 */
async function refused(server, reason, mentions, act) {
  const count = async () => (await scrape(server)).value('switchboard_refused_total', { reason });
  const before = await count();
  for (let n = 0; n < 3; n += 1) await act();
  assert.equal((await count()) - before, 3, reason);
  const [line, ...more] = await eventually(() => told(server, reason).length > 0 && told(server, reason), `a line about ${reason}`);
  assert.equal(more.length, 0, 'more would fill the log');
  assert.deepEqual([line.level, line.from, line.unsaid], ['INFO', '127.0.0.1', 0]);
  assert.ok(line.fix.includes(mentions), line.fix);
  return line;
}

describe('a refusal tells what to change', ONE_NODE, () => {
  const api = (token) => ask(strict.url, '/v1/calls', token === undefined ? {} : { authorization: `Bearer ${token}` });
  const claims = { iss: 'me' };
  const TOKENS = [
    ['token_missing', 'auth: {token}', undefined],
    ['token_unreadable', 'JWT', 'nonsense'],
    ['token_signature', 'SWITCHBOARD_JWT_SECRET', tokenOf('anna', { ...claims, sign: () => Buffer.alloc(32) })],
    ['token_expired', 'auth:refresh', tokenOf('anna', { ...claims, seconds: -60 })],
    ['token_issuer', 'SWITCHBOARD_JWT_ISSUER', tokenOf('anna', { iss: 'you' })],
    ['token_audience', 'SWITCHBOARD_JWT_AUDIENCE', tokenOf('anna', { ...claims, aud: 'others' })],
    ['token_algorithm', 'HS256', tokenOf('anna', { ...claims, header: { alg: 'HS512' } })],
  ];
  for (const [reason, mentions, token] of TOKENS) {
    test(`of a token: ${reason}`, async () => {
      await refused(strict, reason, mentions, async () => assert.equal((await api(token)).status, 401));
      if (token) assert.ok(!strict.logs().includes(token), 'the token is not said');
    });
  }

  test('of a token at the socket', async (t) => {
    await refused(strict, 'token_subject', 'sub', async () => {
      const client = connect(t, strict, { auth: { token: tokenOf('', claims) } });
      await assert.rejects(client.connected(), /UNAUTHENTICATED/);
    });
  });

  test('of an origin', async () => {
    const line = await refused(strict, 'origin', 'SWITCHBOARD_CORS_ORIGINS', async () => {
      assert.equal((await ask(strict.url, EIO, { origin: 'https://elsewhere.example' })).status, 403);
    });
    assert.deepEqual([line.said, line.host], ['https://elsewhere.example', new URL(strict.url).host]);
    for (const words of ['SWITCHBOARD_TRUSTED_PROXIES', 'X-Forwarded-Host', 'SWITCHBOARD_HOSTS']) assert.ok(line.fix.includes(words), line.fix);
  });

  test('of a host', async () => {
    const line = await refused(open, 'host', 'SWITCHBOARD_HOSTS', async () => {
      assert.equal((await ask(open.url, '/', { host: `evil.example:${open.port}` })).status, 403);
    });
    assert.equal(line.said, `evil.example:${open.port}`);
  });

  for (const [reason, mentions, path] of [
    ['handshake_protocol', 'EIO=4', '/socket.io/?EIO=3&transport=polling'],
    ['handshake_transport', 'polling', '/socket.io/?EIO=4&transport=carrier-pigeon'],
    ['handshake_websocket', 'Upgrade', '/socket.io/?EIO=4&transport=websocket'],
    ['handshake_session', 'cookie', `${EIO}&sid=AAAAAAAAAAAAAAAA`],
  ]) {
    test(`of a handshake: ${reason}`, async () => {
      await refused(open, reason, mentions, async () => assert.equal((await ask(open.url, path)).status, 400));
    });
  }

  const WEBSOCKET = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==' };
  for (const [what, sid] of [['that is not here', 'AAAAAAAAAAAAAAAA'], ['that cannot be', 'x']]) {
    test(`of a handshake: a websocket for a session ${what}`, async (t) => {
      const server = await startServer({ env: JSON_LOG });
      t.after(() => server.stop());
      const path = `/socket.io/?EIO=4&transport=websocket&sid=${sid}`;
      await refused(server, 'handshake_session', 'cookie', async () => assert.equal((await ask(server.url, path, WEBSOCKET)).status, 400));
    });
  }

  test('and who is let in is not counted', async (t) => {
    const sum = async () => (await scrape(open)).value('switchboard_refused_total');
    const before = await sum();
    await join(t, open, { userId: someone('anna') });
    await join(t, open, { userId: someone('ben'), transports: ['polling', 'websocket'] });
    assert.equal(await sum(), before);
  });
});

describe('the name that is asked for', { concurrency: true }, () => {
  const status = async (base, host, path = '/') => (await ask(base, path, { host })).status;

  test('is the service\'s own where nobody has to show a token', async () => {
    const paths = ['/', '/v1/calls?userId=anna', EIO, '/openapi.json', '/socket.io/socket.io.js'];
    for (const path of paths) {
      for (const host of ['evil.example', `evil.example:${open.port}`, '127.0.0.1.evil.example', 'localhost.evil.example', 'localhost@evil.example']) {
        assert.equal(await status(open.url, host, path), 403, `${host} ${path}`);
      }
      for (const host of ['localhost', `127.0.0.1:${open.port}`, '[::1]:80', '10.1.2.3', 'node1:3000', 'app.localhost', 'calls.example.org', 'Calls.Example.org:443', 'a.b.svc']) {
        assert.equal(await status(open.url, host, path), 200, `${host} ${path}`);
      }
    }
    assert.equal((await ask(open.url, '/v1/admin/users/anna/disconnect', { host: 'evil.example', origin: 'http://evil.example' }, 'POST')).status, 403);
  });

  test('is the service\'s own on the admin listener, by which probes and Prometheus find it by address', async () => {
    for (const server of [open, strict].map((one) => one.nodes?.[0] ?? one)) {
      for (const path of ['/metrics', '/livez', '/readyz', '/log']) {
        assert.equal(await status(server.adminUrl, 'evil.example', path), 403, path);
        for (const host of ['127.0.0.1:9300', '10.42.0.17:9300', '[2001:db8::1]:9300', 'localhost', 'node1:9300']) assert.equal(await status(server.adminUrl, host, path), 200, `${host} ${path}`);
      }
      assert.equal((await ask(server.adminUrl, '/log', { host: 'evil.example' }, 'PUT')).status, 403);
    }
  });

  test('may be any where tokens are checked', async () => {
    assert.equal(await status(strict.url, 'evil.example'), 200);
    assert.equal(await status(strict.url, 'evil.example', '/v1/calls'), 401);
  });

  test('stands there once', async (t) => {
    const answered = async (port, head) => {
      const { socket, received, closed } = await tcp(t, { port });
      socket.write(head);
      await eventually(() => received().includes('\r\n'), head);
      socket.destroy();
      await closed;
      return Number(received().split(' ')[1]);
    };
    const admin = new URL((open.nodes?.[0] ?? open).adminUrl).port;
    for (const [port, path] of [[open.port, '/'], [strict.port, '/'], [admin, '/livez']]) {
      assert.equal(await answered(port, `GET ${path} HTTP/1.1\r\nConnection: close\r\n\r\n`), 400, 'none');
      assert.equal(await answered(port, `GET ${path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n`), 400, 'two');
      assert.equal(await answered(port, `GET http://localhost${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`), 400, 'two that differ');
      assert.equal(await answered(port, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`), 200);
      assert.equal(await answered(port, `GET http://localhost${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`), 200);
      // HAProxy's health checks have this form.
      assert.equal(await answered(port, `GET ${path} HTTP/1.0\r\n\r\n`), 200);
    }
  });
});

test('what the API answers is kept by nobody on the way', async () => {
  for (const [server, path, headers] of [
    [open, '/v1/calls?userId=anna', {}],
    [open, '/v1/calls?userId=', {}],
    [open, '/v1/presence?userIds=anna', {}],
    [strict, '/v1/calls', {}],
    [strict, '/v1/calls', { authorization: `Bearer ${tokenOf('anna', { iss: 'me' })}` }],
  ]) {
    const response = await fetch(`${server.url}${path}`, { headers });
    assert.equal(response.headers.get('cache-control'), 'no-store', `${path} ${response.status}`);
  }
});
