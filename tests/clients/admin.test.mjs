// The admin listener: health, and the filter of the log.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { assertProblem } from '../support/http.mjs';
import { startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const started = await startServer();
after(() => started.stop());
const server = started.nodes?.[0] ?? started;

const ask = (path, options) => fetch(`${server.adminUrl}${path}`, options);
const filter = (body) => ask('/log', { method: 'PUT', body });

test('a node that serves is alive and ready', async () => {
  assert.equal((await ask('/livez')).status, 200);
  const ready = await ask('/readyz');
  assert.equal(ready.status, 200);
  assert.deepEqual(await ready.json(), { status: 'ok' });
});

test('its address, as the log gives it, lists what there is', async () => {
  const response = await ask('/');
  assert.equal(response.status, 200);
  const list = await response.text();
  const paths = [...list.matchAll(/^GET (\/\w+) /gm)].map(([, path]) => path);
  assert.deepEqual(paths, ['/livez', '/readyz', '/metrics', '/log'], list);
  for (const path of paths) assert.equal((await ask(path)).status, 200, path);
});

test('its address is for nothing else, and the public one is not for this', async () => {
  for (const path of ['/v1/calls', '/socket.io/', '/openapi.json']) await assertProblem(await ask(path), 404);
  await assertProblem(await ask('/readyz', { method: 'POST' }), 405);
  for (const path of ['/readyz', '/livez', '/metrics', '/log']) {
    assert.equal((await fetch(`${server.url}${path}`)).status, 404);
  }
});

test('the filter of the log can be changed while it runs', async (t) => {
  const before = await (await ask('/log')).text();
  assert.equal(before, 'info\n');
  t.after(() => filter(before));
  const joined = () => server.logs().match(/ joined /g)?.length ?? 0;
  await join(t, server, { userId: someone('anna') });
  assert.equal(joined(), 0);

  const changed = await filter('warn,switchboard=debug\n');
  assert.equal(changed.status, 200);
  assert.match(await changed.text(), /switchboard=debug/);
  assert.match(await (await ask('/log')).text(), /switchboard=debug/);
  await join(t, server, { userId: someone('ben') });
  await eventually(() => joined() === 1, 'the log tells of it');
});

test('a filter that is none is refused in one sentence, and changes nothing', async () => {
  const before = await (await ask('/log')).text();
  for (const bad of ['switchboard=loud', '', 'a=b=c', '[', 'x'.repeat(10_000)]) {
    const response = await filter(bad);
    if (bad.length > 5_000) {
      assert.equal(response.status, 413);
      continue;
    }
    const { detail } = await response.clone().json();
    await assertProblem(response, 400);
    assert.equal(detail.split('\n').length, 1);
  }
  assert.equal(await (await ask('/log')).text(), before);
});

test('who is not on this machine changes the filter with a token of an operator alone', async (t) => {
  const forwarded = { 'x-forwarded-for': '127.0.0.1' };
  const put = (url, headers = {}) => fetch(`${url}/log`, { method: 'PUT', body: 'warn', headers: { ...forwarded, ...headers } });
  await assertProblem(await put(server.adminUrl), 403);
  await assertProblem(await put(server.adminUrl, { authorization: 'Bearer x' }), 403);
  assert.equal(await (await ask('/log')).text(), 'info\n');

  const strict = await startServer({ env: JWT });
  t.after(() => strict.stop());
  const url = (strict.nodes?.[0] ?? strict).adminUrl;
  const bearer = (claims) => ({ authorization: `Bearer ${tokenOf(someone('op'), claims)}` });
  await assertProblem(await put(url), 401);
  await assertProblem(await put(url, bearer({ seconds: -60 })), 401);
  await assertProblem(await put(url, bearer({ scope: 'stats' })), 403);
  assert.equal(await (await fetch(`${url}/log`, { headers: forwarded })).text(), 'info\n');
  assert.equal(await (await put(url, bearer({ scope: 'admin' }))).text(), 'warn\n');
});
