// Permitted and refused origins of requests, and the security headers of responses.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import WebSocket from 'ws';
import { assertRefused, assertShape, isText, someone } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { assertProblem } from '../support/http.mjs';
import { runToExit, startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const NAMED = ['https://app.example.org', 'http://localhost:5173'];
const FOREIGN = ['https://evil.example.org', 'http://app.example.org', 'https://app.example.org.evil.org', 'null', 'nonsense'];

const server = await startServer({ args: ['--cors-origins', NAMED.join(',')] });
after(() => server.stop());
const closed = await startServer();
after(() => closed.stop());

function ask(to, path, { origin, method = 'GET', ...headers } = {}) {
  return fetch(new URL(path, to.url), { method, headers: { ...(origin && { origin }), ...headers } });
}

function corsHeaders(response) {
  return Object.fromEntries([...response.headers].filter(([name]) => name.startsWith('access-control-')));
}

/** The status of a websocket handshake from this origin; 101 if it is accepted. */
async function handshake(to, origin, headers = {}) {
  const ws = new WebSocket(`ws://127.0.0.1:${to.port}/socket.io/?EIO=4&transport=websocket`, { origin, headers });
  const status = await new Promise((resolve, reject) => {
    ws.once('upgrade', () => resolve(101));
    ws.once('unexpected-response', (_, response) => resolve(response.statusCode));
    ws.once('error', reject);
  });
  ws.on('error', () => {});
  ws.terminate();
  return status;
}

const ownOrigin = (to) => new URL(to.url).origin;

describe('origins', { concurrency: true }, () => {
  test('one that is named reads the API', async () => {
    for (const origin of NAMED) {
      const response = await ask(server, '/v1/presence?userIds=anna', { origin });
      assert.equal(response.status, 200);
      assert.deepEqual(corsHeaders(response), {
        'access-control-allow-origin': origin,
        'access-control-allow-credentials': 'true',
        'access-control-expose-headers': 'retry-after',
      });
      assert.equal(response.headers.get('vary'), 'origin');
      const refused = await ask(server, '/v1/presence', { origin });
      assert.equal(corsHeaders(refused)['access-control-allow-origin'], origin, 'what is wrong can be read too');
      await assertProblem(refused, 400, 'userIds');
    }
  });

  test('one that is named may ask beforehand, whatever the path', async () => {
    for (const path of ['/v1/calls', '/v1/admin/calls/x/end', '/socket.io/?EIO=4&transport=polling']) {
      const response = await ask(server, path, { origin: NAMED[0], method: 'OPTIONS', 'access-control-request-method': 'POST' });
      assert.equal(response.status, 204);
      assert.deepEqual(corsHeaders(response), {
        'access-control-allow-origin': NAMED[0],
        'access-control-allow-credentials': 'true',
        'access-control-allow-methods': 'GET, POST',
        'access-control-allow-headers': 'authorization, content-type',
        'access-control-expose-headers': 'retry-after',
        'access-control-max-age': '600',
      });
    }
  });

  test('where tokens are needed, asking beforehand needs none, and a refusal can be read', async (t) => {
    const strict = await startServer({ args: ['--cors-origins', NAMED[0]], env: JWT });
    t.after(() => strict.stop());
    const origin = NAMED[0];
    const before = await ask(strict, '/v1/calls', { origin, method: 'OPTIONS', 'access-control-request-method': 'GET' });
    assert.equal(before.status, 204);
    const refused = await ask(strict, '/v1/calls', { origin });
    assert.equal(corsHeaders(refused)['access-control-allow-origin'], origin);
    await assertProblem(refused, 401);
    const authorization = `Bearer ${tokenOf(someone('anna'))}`;
    assert.equal((await ask(strict, '/v1/calls', { origin, authorization })).status, 200);
  });

  test('others read nothing and change nothing', async (t) => {
    const anna = await join(t, server, { userId: someone('anna') });
    for (const [to, origins] of [
      [server, FOREIGN],
      [closed, [...FOREIGN, ...NAMED]],
    ]) {
      for (const origin of origins) {
        const read = await ask(to, '/v1/presence?userIds=anna', { origin });
        assert.deepEqual([read.status, corsHeaders(read)], [200, {}], origin);
        const change = await ask(to, `/v1/admin/users/${anna.userId}/disconnect`, { origin, method: 'POST' });
        assert.deepEqual(corsHeaders(change), {});
        await assertProblem(change, 403);
        const before = await ask(to, '/v1/calls', { origin, method: 'OPTIONS', 'access-control-request-method': 'POST' });
        assert.deepEqual([before.status, corsHeaders(before)], [403, {}]);
      }
    }
    await anna.nothingElse();
    assert.ok(anna.socket.connected);
  });

  test('a websocket is for pages of this service and of those named, and for apps, which send none', async () => {
    for (const origin of [...NAMED, ownOrigin(server), undefined]) assert.equal(await handshake(server, origin), 101, origin);
    for (const origin of FOREIGN) assert.equal(await handshake(server, origin), 403, origin);
    for (const origin of [ownOrigin(closed), undefined]) assert.equal(await handshake(closed, origin), 101, origin);
    for (const origin of [...NAMED, ...FOREIGN, `${ownOrigin(closed)}0`]) assert.equal(await handshake(closed, origin), 403, origin);
  });

  test('so is polling', async () => {
    const path = '/socket.io/?EIO=4&transport=polling';
    const opened = await ask(server, path, { origin: NAMED[0] });
    assert.equal(opened.status, 200);
    assert.equal(corsHeaders(opened)['access-control-allow-origin'], NAMED[0]);
    const { sid } = JSON.parse((await opened.text()).slice(1));
    assert.equal((await ask(server, `${path}&sid=${sid}`, { origin: FOREIGN[0] })).status, 403);
    assert.equal((await ask(server, `${path}&sid=${sid}`, { origin: FOREIGN[0], method: 'POST' })).status, 403);
    for (const origin of FOREIGN) assert.equal((await ask(server, path, { origin })).status, 403, origin);
    assert.equal((await ask(closed, path, { origin: NAMED[0] })).status, 403);
    assert.equal((await ask(closed, path, { origin: ownOrigin(closed) })).status, 200);
  });

  test('a client of a named origin works over both transports', async (t) => {
    for (const transports of [['polling'], ['websocket'], ['polling', 'websocket']]) {
      const options = { transports, extraHeaders: { origin: NAMED[0] } };
      const client = await join(t, server, { userId: someone('anna'), ...options });
      assertRefused(await client.ack('call:initiate', { toUserId: someone('nobody'), callType: 'audio' }), 'RECIPIENT_OFFLINE');
      const refused = connect(t, server, { ...options, extraHeaders: { origin: FOREIGN[0] } });
      assert.match(await refused.next('connect_error'), /error/);
      assert.equal(refused.socket.connected, false);
    }
  });

  test('none is named by default, and answers do not differ then', async () => {
    const response = await ask(closed, '/v1/presence?userIds=anna');
    assert.equal(response.headers.get('vary'), null);
    const { stdout } = await runToExit(['config']);
    assert.match(stdout, /^cors_origins = \[\]$/m);
  });

  test('are set as browsers send them', async () => {
    for (const origin of ['*', 'Null', 'file:///', 'app.example.org', 'https://app.example.org/', 'https://App.example.org', '']) {
      const { code, stderr } = await runToExit(['config', '--cors-origins', origin]);
      assert.equal(code, 1, origin);
      assert.match(stderr, /^error: cors_origins: expected an origin [^\n]+\n$/);
    }
  });
});

describe('behind a proxy', { concurrency: true }, () => {
  const OWN = 'https://calls.example.org:8443';
  const forwarded = { 'x-forwarded-for': '192.0.2.7', 'x-forwarded-host': 'calls.example.org:8443' };
  const opens = async (to, headers) => (await ask(to, '/socket.io/?EIO=4&transport=polling', { origin: OWN, ...headers })).status;

  async function behind(t, env) {
    const one = await startServer({ env });
    t.after(() => one.stop());
    return one;
  }

  test('the host that a trusted one was asked for is the page’s own', async (t) => {
    const trusting = await behind(t, { ...JWT, SWITCHBOARD_TRUSTED_PROXIES: '127.0.0.0/8' });
    assert.equal(await opens(trusting, forwarded), 200);
    assert.equal(await handshake(trusting, OWN, forwarded), 101);
    assert.equal(await opens(trusting, { ...forwarded, 'x-forwarded-host': 'calls.example.org' }), 403, 'on another port');
    assert.equal(await opens(trusting, {}), 403, 'nothing is forwarded');
    assert.equal(await opens(trusting, { forwarded: 'host="calls.example.org:8443"' }), 403, 'only one header is read');
    const standard = await behind(t, { ...JWT, SWITCHBOARD_TRUSTED_PROXIES: 'hops:1', SWITCHBOARD_FORWARDED_HEADER: 'forwarded' });
    assert.equal(await opens(standard, { forwarded: 'for=192.0.2.7;host="calls.example.org:8443";proto=https' }), 200);
  });

  test('others are not believed', async (t) => {
    const wary = await behind(t, { ...JWT, SWITCHBOARD_TRUSTED_PROXIES: '192.0.2.0/24' });
    assert.equal(await opens(wary, forwarded), 403);
    assert.equal(await handshake(wary, OWN, forwarded), 403);
  });

  test('without tokens the host must be one of the service’s: a rebound name is forwarded, too', async (t) => {
    const env = { SWITCHBOARD_TRUSTED_PROXIES: 'hops:1' };
    assert.equal(await opens(await behind(t, env), forwarded), 403);
    assert.equal(await opens(await behind(t, { ...env, SWITCHBOARD_HOSTS: 'calls.example.org' }), forwarded), 200);
  });
});

test('pages of files, if they are named', async (t) => {
  for (const origin of ['null', 'file://']) {
    assert.equal(await handshake(closed, origin), 403, origin);
    const one = await startServer({ args: ['--cors-origins', origin] });
    t.after(() => one.stop());
    assert.equal(await handshake(one, origin), 101, origin);
    const response = await ask(one, '/v1/presence?userIds=anna', { origin });
    assert.equal(corsHeaders(response)['access-control-allow-origin'], origin);
    assert.equal(await handshake(one, origin === 'null' ? 'file://' : 'null'), 403);
  }
});

describe('headers', { concurrency: true }, () => {
  test('of the page let nothing in and nothing out', async () => {
    for (const path of ['/', '/docs', '/js/main.js', '/style.css', '/icon.svg', '/socket.io/socket.io.js']) {
      const response = await ask(closed, path);
      assert.equal(response.status, 200, path);
      const { headers } = response;
      const policy = Object.fromEntries(headers.get('content-security-policy').split(/; ?/).map((rule) => rule.split(/ (.*)/)));
      assertShape(policy, {
        'default-src': "'self'",
        'media-src': "'self' blob:",
        'object-src': "'none'",
        'frame-ancestors': "'none'",
        'base-uri': "'none'",
        'form-action': "'self'",
      });
      assert.equal(headers.get('x-content-type-options'), 'nosniff');
      assert.equal(headers.get('x-frame-options'), 'DENY');
      assert.equal(headers.get('referrer-policy'), 'no-referrer');
      const permissions = headers.get('permissions-policy').split(', ');
      for (const one of ['camera=(self)', 'microphone=(self)', 'display-capture=(self)']) assert.ok(permissions.includes(one), one);
      assert.ok(permissions.every((one) => /^[a-z-]+=\((self)?\)$/.test(one)), permissions.join());
    }
  });

  test('the page has no script, style or handler inline', async () => {
    for (const path of ['/', '/docs']) {
      const html = await (await ask(closed, path)).text();
      assert.ok(isText(html));
      assert.doesNotMatch(html, /<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|javascript:/i);
    }
  });

  test('nothing that is served is taken for something else', async () => {
    for (const path of ['/openapi.json', '/v1/presence?userIds=anna', '/v1/presence', '/nowhere', '/socket.io/?EIO=4&transport=polling']) {
      assert.equal((await ask(closed, path)).headers.get('x-content-type-options'), 'nosniff', path);
    }
  });
});
