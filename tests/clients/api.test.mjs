// The HTTP API besides history: presence, and the API's description.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { dial, pair } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startRedis } from '../support/cluster.mjs';
import { assertProblem, get, page, post } from '../support/http.mjs';
import { checkerOf, documentOf } from '../support/schemas.mjs';
import { Server, startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

async function presence(userIds) {
  const response = await get(server, '/v1/presence', { userIds: userIds.join(',') });
  assert.equal(response.status, 200, await response.clone().text());
  const body = await response.json();
  assert.deepEqual(Object.keys(body), ['presence']);
  return body.presence;
}

describe('presence over HTTP', { concurrency: true }, () => {
  test('says what presence:subscribe says on the socket', async (t) => {
    const { caller, callee } = await pair(t, server);
    const dora = await join(t, server, { userId: someone('dora') });
    const nobody = someone('nobody');
    await dial(caller, callee);
    const userIds = [caller.userId, callee.userId, dora.userId, nobody];
    const expected = Object.fromEntries([[caller.userId, 'busy'], [callee.userId, 'busy'], [dora.userId, 'online'], [nobody, 'offline']]);
    assert.deepEqual(await presence(userIds), expected);
    assert.deepEqual((await dora.ok('presence:subscribe', { userIds })).presence, expected);
    await caller.ok('call:end', { toUserId: callee.userId });
    callee.close();
    await eventually(async () => (await presence([callee.userId]))[callee.userId] === 'offline', 'the callee is offline');
    assert.deepEqual(await presence([caller.userId]), { [caller.userId]: 'online' });
  });

  test('takes strange ids, the same one twice, and up to 500', async (t) => {
    const strange = await join(t, server, { userId: `${someone('ж')} &=+%?#/"'` });
    assert.deepEqual(await presence([strange.userId, strange.userId]), { [strange.userId]: 'online' });
    const many = Array.from({ length: 500 }, (_, number) => `u${number}`);
    assert.equal(Object.keys(await presence(many)).length, 500);
    await assertProblem(await get(server, '/v1/presence', { userIds: [...many, 'one'].join(',') }), 400, 'userIds');
  });

  test('names what is wrong', async () => {
    for (const userIds of [undefined, '', ',', 'a,', ',a', 'a,,b', 'a\u0000', 'x'.repeat(129), `a,${'é'.repeat(65)}`]) {
      await assertProblem(await get(server, '/v1/presence', { userIds }), 400, 'userIds');
    }
    await assertProblem(await fetch(`${server.url}/v1/presence?userIds=a&userIds=b`), 400, 'userIds');
    await assertProblem(await get(server, '/v1/presence', { userIds: 'a', limit: 1 }), 400, 'limit');
    await assertProblem(await fetch(`${server.url}/v1/presence?userIds=a`, { method: 'POST' }), 405);
  });

  test('does not guess while Redis is away', async (t) => {
    const redis = await startRedis();
    const node = await Server.create(['--redis-url', redis.url], { SWITCHBOARD_DRAIN_WINDOW: '100ms' });
    t.after(() => node.stop());
    assert.equal((await get(node, '/v1/presence', { userIds: 'a' })).status, 200);
    await redis.stop();
    const response = await get(node, '/v1/presence', { userIds: 'a' });
    assert.match(response.headers.get('retry-after') ?? '', /^[1-9]\d*$/);
    await assertProblem(response, 503);
  });
});

describe('/openapi.json', { concurrency: true }, () => {
  const GOOD = { userId: 'anna', userIds: 'anna,ben', with: 'ben', limit: 5, since: 0, until: 0, status: 'missed', type: 'audio', bucket: 'day' };
  const GOOD_ID = '01890a5d-ac96-774b-bcce-b302099a8057';

  /** Each readable endpoint with its query parameters; `ask` requests it. */
  async function operations() {
    const document = await documentOf(server, '/openapi.json');
    const readable = Object.entries(document.paths).filter(([, item]) => item.get);
    return readable.map(([path, { get: operation }]) => {
      const ask = (query) => get(server, path.replace('{id}', GOOD_ID), query);
      return { path, operation, inQuery: (operation.parameters ?? []).filter((one) => one.in === 'query'), ask };
    });
  }

  test('describes every endpoint, and refers to nothing that is not there', async () => {
    const document = await documentOf(server, '/openapi.json');
    assert.equal(document.openapi, '3.1.0');
    for (const path of ['/v1/calls', '/v1/calls/{id}', '/v1/presence', '/v1/stats', '/v1/admin/calls']) assert.ok(document.paths[path], path);
    for (const [, name] of JSON.stringify(document).matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g)) {
      assert.ok(document.components.schemas[name], `${name} is described`);
    }
    for (const { path, operation } of await operations()) {
      assert.ok(operation.operationId && operation.summary, `${path} says what it is`);
      assert.ok(operation.responses['400'].content['application/problem+json'], `${path} says how it refuses`);
    }
  });

  test('names the parameters that the server takes, and no others are taken', async () => {
    for (const { path, inQuery, ask } of await operations()) {
      const names = inQuery.map(({ name }) => name);
      const cursor = path.startsWith('/v1/admin') ? '0' : `1700000000000_${GOOD_ID}`;
      const query = Object.fromEntries(names.map((name) => [name, { ...GOOD, cursor }[name]]));
      const response = await ask(query);
      assert.ok([200, 404].includes(response.status), `${path}: ${await response.text()}`);
      await assertProblem(await ask({ ...query, colour: 'red' }), 400, 'colour');
      for (const { name, required } of inQuery) {
        await assertProblem(await ask({ ...query, [name]: '' }), 400, name);
        const without = await ask({ ...query, [name]: undefined });
        if (required) await assertProblem(without, 400, name);
        else assert.ok([200, 404].includes(without.status), `${path} without ${name}`);
      }
    }
  });

  test('its schemas fit the answers', async (t) => {
    const document = await documentOf(server, '/openapi.json');
    const { problems } = checkerOf(document);
    const { caller, callee, callId: over } = await callInHistory(t);
    const { callId: live } = await dial(caller, callee);
    const asked = [
      ['/v1/calls/{id}', { userId: caller.userId }, over],
      ['/v1/calls/{id}/timeline', { userId: caller.userId }, over],
      ['/v1/stats', { since: Date.now() - 60_000, until: Date.now() + 1, bucket: 'minute' }],
      ['/v1/admin/calls', {}],
      ['/v1/admin/request', {}],
      ['/v1/calls', { userId: caller.userId }],
      ['/v1/presence', { userIds: caller.userId }],
      ['/v1/calls', { userId: caller.userId, limit: 0 }],
    ];
    for (const [path, query, id] of asked) {
      const response = await get(server, path.replace('{id}', id), query);
      const [type] = response.headers.get('content-type').split(';');
      const { schema } = document.paths[path].get.responses[response.status].content[type];
      assert.deepEqual(problems(schema, await response.json()), [], path);
    }
    const orders = [
      ['/v1/admin/calls/{id}/end', live],
      ['/v1/admin/calls/{id}/end', 'x'],
      ['/v1/admin/users/{id}/disconnect', caller.userId],
    ];
    for (const [path, id] of orders) {
      const response = await post(server, path.replace('{id}', id));
      const [type] = response.headers.get('content-type').split(';');
      const { schema } = document.paths[path].post.responses[response.status].content[type];
      assert.deepEqual(problems(schema, await response.json()), [], path);
    }
    assert.notDeepEqual(problems(document.paths['/v1/calls'].get.responses['200'].content['application/json'].schema, { calls: [{}] }), []);
  });

  async function callInHistory(t) {
    const { caller, callee } = await pair(t, server);
    const { callId } = await dial(caller, callee);
    await caller.ok('call:end', { toUserId: callee.userId });
    await eventually(async () => (await page(server, caller.userId)).calls[0]?.endedAt, 'the row is stored');
    return { caller, callee, callId };
  }
});
