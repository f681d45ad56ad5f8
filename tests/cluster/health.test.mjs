// The health of a node while its dependencies fail and recover.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { describe, test } from 'node:test';
import { dial, pair, ringing } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { freePort, startCluster, startRedis } from '../support/cluster.mjs';
import { row } from '../support/http.mjs';
import { scrape } from '../support/metrics.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { adminUrlOf, launch, privateFolder } from '../support/server.mjs';

async function health(adminUrl) {
  const response = await fetch(`${adminUrl}/readyz`);
  return { code: response.status, ...(await response.json()) };
}

/** Waits until the health page reports this. */
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

  test('of a node whose lease is not renewed though Redis answers others: not ready, and well again', async (t) => {
    const { node, redis } = await clusterFor(t);
    // The heartbeat fails, and no other command of an idle node does.
    assert.equal(await redis.ask('SET sb:{default}:nodes x'), '+OK\r\n');
    const unready = await says(node.adminUrl, 'unready', 20_000);
    assert.equal(unready.code, 503);
    assert.match(trouble(unready, 'lease').what, /WRONGTYPE/);
    assert.equal((await scrape(node)).value('switchboard_ready'), 0);
    assert.equal(await redis.ask('DEL sb:{default}:nodes'), ':1\r\n');
    assert.equal((await says(node.adminUrl, 'ok', 20_000)).code, 200);
  });

  test('of a node whose Postgres is away: degraded until all rows are written', async (t) => {
    const postgres = await startPostgres();
    t.after(() => postgres.stop());
    const { cluster, node } = await clusterFor(t, { args: ['--database-url', postgres.url] });
    const connected = (await scrape(node)).value('switchboard_history_connections_total');
    assert.ok(connected > 0);
    await postgres.halt();
    const { caller, callee } = await pair(t, cluster);
    const { callId } = await dial(caller, callee);
    const away = await eventually(async () => {
      const page = await health(node.adminUrl);
      return trouble(page, 'history') && page;
    }, 'it says that history cannot be written', 20_000);
    assert.deepEqual([away.code, away.status], [200, 'degraded']);
    assert.ok(trouble(away, 'history').since <= Date.now());
    const waiting = await scrape(node);
    assert.equal(waiting.value('switchboard_trouble', { part: 'history' }), 1);
    assert.equal(waiting.value('switchboard_history_backlog_rows'), 1);
    assert.ok(waiting.value('switchboard_history_backlog_age_seconds') > 0);
    assert.ok(waiting.value('switchboard_history_errors_total', { operation: 'save' }) > 0);
    await postgres.start();
    await says(node.adminUrl, 'ok', 30_000);
    const written = await scrape(node);
    assert.equal(written.value('switchboard_trouble'), 0);
    assert.equal(written.value('switchboard_history_backlog_rows'), 0);
    assert.equal(written.value('switchboard_history_backlog_age_seconds'), 0);
    assert.ok(written.value('switchboard_history_connections_total') > connected);
    await row(node, caller.userId, callId);
  });

  test('counts what a Redis that was away cost, and a dead node once', async (t) => {
    const cluster = await startCluster(3);
    t.after(() => cluster.stop());
    const before = await scrape(cluster);
    process.kill(cluster.redis.pid, 'SIGSTOP');
    await says(cluster.nodes[0].adminUrl, 'degraded');
    // Long enough for the connections to be abandoned.
    const beats = (all) => all.value('switchboard_redis_errors_total', { command: 'beat' });
    await eventually(async () => beats(await scrape(cluster)) > beats(before) + 2 * cluster.nodes.length, 'heartbeats fail again and again', 20_000);
    process.kill(cluster.redis.pid, 'SIGCONT');
    await eventually(async () => {
      const now = await scrape(cluster);
      const more = (name, labels) => now.value(name, labels) > before.value(name, labels);
      return more('switchboard_redis_errors_total', { command: 'beat' })
        && more('switchboard_sweeps_failed_total') && more('switchboard_redis_reconnects_total') && more('switchboard_cluster_resets_total');
    }, 'it is counted');
    for (const node of cluster.nodes) await says(node.adminUrl, 'ok', 20_000);

    const [dead, ...rest] = cluster.nodes;
    await dead.kill();
    const living = { nodes: rest };
    const buried = async () => (await scrape(living)).value('switchboard_dead_nodes_total');
    await eventually(async () => (await buried()) > 0, 'the dead node is buried', 30_000);
    // Each of the others checks every 2 s: both have checked after two more heartbeats each.
    const beaten = async (node) => (await scrape(node)).value('switchboard_redis_command_seconds_count', { command: 'beat' });
    for (const node of rest) {
      const now = await beaten(node);
      await eventually(async () => (await beaten(node)) > now + 1, 'its heart beats');
    }
    assert.equal(await buried(), 1);
  });

  test('of a node that stops: draining, while its clients go', async (t) => {
    const { cluster, node } = await clusterFor(t, { args: ['--drain-window', '1s'] });
    await ringing(t, cluster);
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    t.after(() => agent.destroy());
    const handshake = async () => {
      const request = get(`${node.url}/socket.io/?EIO=4&transport=polling`, { agent });
      const [response] = await once(request, 'response');
      response.resume();
      await once(response, 'end');
      return response;
    };
    assert.equal((await handshake()).statusCode, 200);
    node.process.child.kill('SIGTERM');
    const page = await says(node.adminUrl, 'draining');
    assert.equal(page.code, 503);
    // A new request on a connection that a proxy has kept is told when to try another node.
    const turnedAway = await handshake();
    assert.equal(turnedAway.statusCode, 503);
    assert.equal(turnedAway.headers['retry-after'], '1');
    assert.equal((await fetch(`${node.adminUrl}/livez`)).status, 200);
    assert.deepEqual(await node.process.exit(), { code: 0, signal: null });
  });
});
