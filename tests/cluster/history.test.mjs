// History in a failing Postgres: calls continue, and in the end every call has exactly one correct row.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import { answer } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';
import { calls, get } from '../support/http.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { startProxy } from '../support/proxy.mjs';
import { Server, runToExit } from '../support/server.mjs';

async function postgresFor(t, options) {
  const postgres = await startPostgres(options);
  t.after(() => postgres.stop());
  return postgres;
}

/** `count` nodes on one Postgres; a single node has no Redis. */
async function nodesOn(t, postgres, count) {
  const args = ['--database-url', postgres.url];
  if (count > 1) {
    const cluster = await startCluster(count, { args });
    t.after(() => cluster.stop());
    return cluster.nodes;
  }
  const server = await Server.create(args, {});
  t.after(() => server.stop());
  return [server];
}

/** Waits until the call is in the history with its end. */
function isWritten(node, userId, callId, deadline) {
  const written = async () => {
    const response = await get(node, '/v1/calls', { userId });
    return response.ok && (await response.json()).calls.find((one) => one.id === callId)?.endedAt;
  };
  return eventually(written, 'the row is there', deadline);
}

/** Pairs of users who call each other repeatedly; `ledger` has each ended call with its end. */
class Callers {
  ledger = new Map();
  #going = true;

  static async start(t, nodes, count) {
    const callers = new Callers();
    const pairs = [];
    for (let number = 0; number < count; number += 1) {
      pairs.push([
        await join(t, nodes[number % nodes.length], { userId: someone('alice') }),
        await join(t, nodes[(number + 1) % nodes.length], { userId: someone('bob') }),
      ]);
    }
    callers.done = Promise.all(pairs.map(([caller, callee]) => callers.#keepCalling(caller, callee)));
    callers.done.catch(() => {});
    return callers;
  }

  async #keepCalling(caller, callee) {
    for (let round = 0; this.#going; round += 1) {
      const reason = await call(caller, callee, round % 3);
      this.ledger.set(reason.callId, reason.reason);
    }
  }

  /** Waits until this many more calls have ended. */
  async more(count) {
    const goal = this.ledger.size + count;
    await eventually(() => this.ledger.size >= goal, 'calls go on', 20_000);
  }

  async stop() {
    this.#going = false;
    await this.done;
  }
}

/** One call from ring to end; returns how it ended. */
async function call(caller, callee, kind) {
  const { callId } = await caller.ok('call:initiate', { toUserId: callee.userId, callType: 'audio' });
  await callee.next('call:incoming');
  if (kind === 0) {
    const { reason } = await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
    return { callId, reason };
  }
  if (kind === 1) {
    await callee.ok('call:reject', { toUserId: caller.userId });
    await caller.next('call:rejected');
    return { callId, reason: 'declined' };
  }
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
  const { reason } = await callee.ok('call:end', { toUserId: caller.userId });
  await caller.next('call:ended');
  return { callId, reason };
}

/** Every call of the ledger has exactly one row, with its end, and there are no others. */
async function assertLedger(postgres, ledger, deadline) {
  const open = () => postgres.ask('SELECT count(*) FROM calls WHERE ended_at IS NOT NULL');
  await eventually(async () => Number(await open()) >= ledger.size, 'every row is there', deadline);
  const rows = (await postgres.ask('SELECT id, end_reason, jsonb_array_length(timeline) FROM calls')).split('\n');
  const found = rows.map((row) => row.split('|'));
  assert.equal(found.length, ledger.size);
  for (const [id, reason, steps] of found) {
    assert.equal(reason, ledger.get(id), id);
    assert.equal(Number(steps), reason === 'completed' ? 3 : 2, id);
  }
}

describe('Postgres', { concurrency: true }, () => {
  for (const count of [1, 3]) {
    test(`stopped, frozen and killed under calls loses no row: ${count} node${count > 1 ? 's' : ''}`, async (t) => {
      const postgres = await postgresFor(t);
      const nodes = await nodesOn(t, postgres, count);
      const callers = await Callers.start(t, nodes, 6);
      await callers.more(50);

      await postgres.halt();
      await callers.more(200);
      const [reader] = nodes;
      const refused = await get(reader, '/v1/calls', { userId: 'anybody' });
      assert.equal(refused.status, 503, 'readers are told at once');
      assert.ok(Number(refused.headers.get('retry-after')) > 0);
      await postgres.start();
      await callers.more(50);

      process.kill(postgres.pid, 'SIGSTOP');
      await callers.more(200);
      process.kill(postgres.pid, 'SIGCONT');
      await callers.more(50);

      await postgres.halt('SIGQUIT');
      await callers.more(200);
      await postgres.start();
      await callers.more(50);

      await callers.stop();
      await assertLedger(postgres, callers.ledger, 30_000);
    });
  }

  test('gets the rows of a node that died while it was away', async (t) => {
    const postgres = await postgresFor(t);
    const nodes = await nodesOn(t, postgres, 3);
    const callers = await Callers.start(t, nodes.slice(0, 1), 3);
    await callers.more(20);
    await postgres.halt('SIGQUIT');
    await callers.more(100);
    await callers.stop();
    await nodes[0].kill('SIGKILL');
    await postgres.start();
    // The records stay in Redis until their deadline, a minute after the end.
    await assertLedger(postgres, callers.ledger, 100_000);
  });

  test('that is away when a node starts is used when it is there', async (t) => {
    const postgres = await postgresFor(t);
    await postgres.halt();
    const [node] = await nodesOn(t, postgres, 1);
    assert.match(node.logs(), /the database is unreachable: rows wait, and calls continue/);
    const callers = await Callers.start(t, [node], 2);
    await callers.more(10);
    await callers.stop();
    await postgres.start();
    await assertLedger(postgres, callers.ledger, 20_000);
  });

  test('is written behind a second', async (t) => {
    const postgres = await postgresFor(t);
    const [node] = await nodesOn(t, postgres, 1);
    const caller = await join(t, node, { userId: someone('alice') });
    const callee = await join(t, node, { userId: someone('bob') });
    const { callId } = await call(caller, callee, 2);
    await isWritten(node, caller.userId, callId, 1_000);
  });

  test('is used again when its connections fall silent, idle or in use', async (t) => {
    const postgres = await postgresFor(t);
    const proxy = await startProxy(postgres.port);
    t.after(() => proxy.stop());
    const url = postgres.url.replace(`:${postgres.port}/`, `:${proxy.port}/`);
    const [node] = await nodesOn(t, { url }, 1);
    const caller = await join(t, node, { userId: someone('alice') });
    const callee = await join(t, node, { userId: someone('bob') });
    const read = async () => (await get(node, '/v1/calls', { userId: caller.userId })).status;
    const first = await call(caller, callee, 0);
    await isWritten(node, caller.userId, first.callId);

    proxy.silence();
    assert.equal(await read(), 200, 'an idle connection is looked at before it is used');
    const second = await call(caller, callee, 0);
    // The writer may have been using one: what it waits for takes longer to be given up.
    await isWritten(node, caller.userId, second.callId, 20_000);

    const release = await postgres.hold('LOCK TABLE calls');
    const third = await call(caller, callee, 0);
    const reads = Array.from({ length: 6 }, read);
    await eventually(async () => (await postgres.waiting()) >= 7, 'all readers and the writer wait');
    proxy.silence();
    await release();
    assert.deepEqual(await Promise.all(reads), [503, 503, 503, 503, 503, 503]);
    assert.equal(await read(), 200, 'those are given up, and others are made');
    await isWritten(node, caller.userId, third.callId, 20_000);
  });

  test('gets the rows of a month that was detached when it is attached again', async (t) => {
    const postgres = await postgresFor(t);
    const [node] = await nodesOn(t, postgres, 1);
    const caller = await join(t, node, { userId: someone('alice') });
    const callee = await join(t, node, { userId: someone('bob') });
    const first = await call(caller, callee, 0);
    await isWritten(node, caller.userId, first.callId);
    const month = await postgres.ask('SELECT tableoid::regclass FROM calls LIMIT 1');
    const bounds = await postgres.ask(`SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '${month}'::regclass`);
    await postgres.ask(`ALTER TABLE calls DETACH PARTITION ${month}`);
    const second = await call(caller, callee, 1);
    const told = /ERROR .*history cannot be written.*the table calls_\d{4}_\d{2} is there, but is not a partition/;
    await eventually(() => told.test(node.logs()), 'it is said');
    await postgres.ask(`ALTER TABLE calls ATTACH PARTITION ${month} ${bounds}`);
    for (const { callId } of [first, second]) await isWritten(node, caller.userId, callId);
  });
});

describe('a node refuses', { concurrency: true }, () => {
  test('a database whose schema is behind, until it is migrated', async (t) => {
    const postgres = await postgresFor(t, { schema: false });
    const args = ['--listen', '127.0.0.1:0', '--database-url', postgres.url];
    const refused = await runToExit(args);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /^error: cannot use the database postgres:\/\/.*: its schema is behind this version: run `switchboard migrate`$/m);
    const migrated = await runToExit(['migrate', '--database-url', postgres.url]);
    assert.equal(migrated.code, 0, migrated.stderr);
    assert.match(migrated.stdout, /^postgres:\/\/.*: the schema was created, at version \d+\n$/);
    const again = await runToExit(['migrate', '--database-url', postgres.url]);
    assert.match(again.stdout, /: the schema is at version \d+ already: nothing was changed\n$/);
    const [node] = await nodesOn(t, postgres, 1);
    assert.equal((await get(node, '/v1/calls', { userId: 'anybody' })).status, 200);
  });

  test('nothing when it is asked to migrate at its start, with others', async (t) => {
    const postgres = await postgresFor(t, { schema: false });
    const cluster = await startCluster(1, { args: ['--migrate', '--database-url', postgres.url] });
    t.after(() => cluster.stop());
    await Promise.all([cluster.addNode({ args: ['--migrate', '--database-url', postgres.url] }), cluster.addNode({ args: ['--migrate', '--database-url', postgres.url] })]);
    for (const node of cluster.nodes) assert.equal((await get(node, '/v1/calls', { userId: 'x' })).status, 200);
    assert.doesNotMatch(cluster.logs(), /SQLite/);
  });

  test('a wrong password in one sentence without it', async (t) => {
    const postgres = await postgresFor(t, { settings: {} });
    await postgres.ask("CREATE ROLE guarded LOGIN PASSWORD 'right'");
    await postgres.ask(`COPY (SELECT 'host all guarded all scram-sha-256' UNION ALL SELECT 'local all all trust' UNION ALL SELECT 'host all all all trust') TO '${postgres.dir}/data/pg_hba.conf'`);
    await postgres.ask('SELECT pg_reload_conf()');
    const url = `postgres://guarded:sesame@127.0.0.1:${postgres.port}/postgres`;
    const refused = await eventually(async () => {
      const run = await runToExit(['--listen', '127.0.0.1:0', '--database-url', url]);
      return /password authentication failed/.test(run.stderr) && run;
    }, 'it is refused');
    assert.equal(refused.code, 1);
    assert.doesNotMatch(refused.stderr, /sesame/);
    assert.equal(refused.stderr.trim().split('\n').length, 1, refused.stderr);
  });
});

test('SQLite on a node of several holds its part of the history: it says so, and assumes no ends', async (t) => {
  const cluster = await startCluster(1, { args: ['--history-retention', '90days'] });
  t.after(() => cluster.stop());
  const [node] = cluster.nodes;
  assert.match(node.logs(), /WARN .*history is kept in SQLite, so each node has a part of it only/);
  await node.kill();
  const hour = 3_600_000;
  const now = Date.now();
  const insert = `
import sqlite3
rows = [('0190a000-0000-7000-8000-000000000001', 'answered', ${now - 14 * hour}), ('0190a000-0000-7000-8000-000000000002', 'pending', ${now - 100 * 24 * hour})]
with sqlite3.connect('${node.db}') as db:
    for id, status, at in rows:
        started = at if status == 'answered' else None
        db.execute("INSERT INTO calls VALUES (?, 'anna', 'ben', 'audio', ?, NULL, NULL, ?, NULL, ?, ?, 2, '[]')", (id, status, started, at, at))
`;
  await promisify(execFile)('python3', ['-c', insert]);
  await node.start();
  // Maintenance ends calls before it deletes old ones.
  const left = await eventually(async () => {
    const found = await calls(node, 'anna');
    return found.length === 1 && found;
  }, 'what is kept long enough goes, with or without an end');
  assert.equal(left[0].status, 'answered', 'another node knows its end');
});
