// What a node says of itself while what it rests on comes and goes.

import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { dial, pair, ringing } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { freePort, startCluster, startRedis } from '../support/cluster.mjs';
import { row } from '../support/http.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { adminUrlOf, launch, privateFolder } from '../support/server.mjs';

async function health(adminUrl) {
  const response = await fetch(`${adminUrl}/readyz`);
  return { code: response.status, ...(await response.json()) };
}

/** Waits until the page says so. */
const says = (adminUrl, status, within) =>
  eventually(async () => {
    const page = await health(adminUrl);
    return page.status === status && page;
  }, `the page says ${status}`, within);

const trouble = (page, part) => page.troubles?.find((one) => one.part === part);

async function clusterFor(t, options) {
  const cluster = await startCluster(1, options);
  t.after(() => cluster.stop());
  return { cluster, node: cluster.nodes[0], redis: cluster.redis };
}

describe('the health page', { concurrency: true }, () => {
  test('says what a node waits for at its start', async (t) => {
    const port = await freePort();
    const dir = await privateFolder();
    const run = launch(['--listen', '127.0.0.1:0', '--redis-url', `redis://127.0.0.1:${port}`], { dir });
    t.after(async () => {
      run.child.kill('SIGKILL');
      await run.exit();
      await rm(dir, { recursive: true, force: true });
    });
    const url = await adminUrlOf(run);
    const waiting = await eventually(async () => {
      const page = await health(url);
      return trouble(page, 'redis') && page;
    }, 'it waits for Redis');
    assert.deepEqual([waiting.code, waiting.status], [503, 'starting']);
    assert.equal((await fetch(`${url}/livez`)).status, 200);

    const redis = await startRedis({ port });
    t.after(() => redis.stop());
    const ready = await says(url, 'ok');
    assert.deepEqual([ready.code, ready.troubles], [200, undefined]);
  });

  test('of a node whose Redis freezes, and then is killed: degraded, and well again', async (t) => {
    const { node, redis } = await clusterFor(t);
    const began = Date.now();
    process.kill(redis.pid, 'SIGSTOP');
    const frozen = await says(node.adminUrl, 'degraded');
    assert.equal(frozen.code, 200, 'it keeps its clients');
    const { since, what } = trouble(frozen, 'redis') ?? frozen.troubles[0];
    assert.ok(since >= began && since <= Date.now(), `${since}`);
    assert.ok(what.length > 0);
    process.kill(redis.pid, 'SIGCONT');
    await says(node.adminUrl, 'ok', 20_000);

    redis.child.kill('SIGKILL');
    await redis.gone;
    assert.equal((await says(node.adminUrl, 'degraded')).code, 200);
    await redis.start();
    await says(node.adminUrl, 'ok', 20_000);
  });

  test('of a node whose Postgres is away: degraded until all rows are written', async (t) => {
    const postgres = await startPostgres();
    t.after(() => postgres.stop());
    const { cluster, node } = await clusterFor(t, { args: ['--database-url', postgres.url] });
    await postgres.halt();
    const { caller, callee } = await pair(t, cluster);
    const { callId } = await dial(caller, callee);
    const away = await eventually(async () => {
      const page = await health(node.adminUrl);
      return trouble(page, 'history') && page;
    }, 'it says that history cannot be written', 20_000);
    assert.deepEqual([away.code, away.status], [200, 'degraded']);
    assert.ok(trouble(away, 'history').since <= Date.now());
    await postgres.start();
    await says(node.adminUrl, 'ok', 30_000);
    await row(node, caller.userId, callId);
  });

  test('of a node that stops: draining, while its clients go', async (t) => {
    const { cluster, node } = await clusterFor(t, { args: ['--drain-window', '1s'] });
    await ringing(t, cluster);
    node.process.child.kill('SIGTERM');
    const page = await says(node.adminUrl, 'draining');
    assert.equal(page.code, 503);
    assert.equal((await fetch(`${node.adminUrl}/livez`)).status, 200);
    assert.deepEqual(await node.process.exit(), { code: 0, signal: null });
  });
});
