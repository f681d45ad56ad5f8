// The build before this one and this one, side by side on one Redis and one Postgres: nodes are replaced in turn under
// calls, forth and back. `make upgrade-test` builds the former once and names it in OLD_SWITCHBOARD_BIN.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { startBalancer } from '../support/balancer.mjs';
import { eventually } from '../support/check.mjs';
import { startCluster } from '../support/cluster.mjs';
import { Load } from '../support/load.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { BINARY } from '../support/server.mjs';

const OLD = process.env.OLD_SWITCHBOARD_BIN;
const CALLS = Number(process.env.LOAD_CALLS ?? 20);
const DIALLING = Number(process.env.LOAD_DIALLING ?? 4);

const run = promisify(execFile);
const clean = { failures: [], ended: 0, missing: 0, doubled: 0, outOfOrder: 0, examples: [], repeated: 0 };

test('nodes of two builds share calls: none ends and no row is lost, forth and back', { skip: !OLD && 'OLD_SWITCHBOARD_BIN names the earlier build' }, async (t) => {
  const postgres = await startPostgres({ schema: false });
  t.after(() => postgres.stop());
  const migrate = (binary) => run(binary, ['migrate', '--database-url', postgres.url], { env: {} });
  await migrate(OLD);
  const cluster = await startCluster(3, { binary: OLD, args: ['--drain-window', '3s', '--database-url', postgres.url] });
  t.after(() => cluster.stop());
  const balancer = await startBalancer(cluster.nodes);
  t.after(() => balancer.stop());
  const load = new Load({ url: balancer.url, calls: CALLS, dialling: DIALLING, polling: 2 });
  t.after(() => load.close());
  await load.start();
  await load.goneOn();

  // As docs/guides/upgrading.md says: the schema first, then one node after the other.
  await migrate(BINARY);
  for (const binary of [BINARY, OLD]) {
    for (const node of cluster.nodes) {
      node.binary = binary;
      await node.restart();
      await load.goneOn();
    }
  }

  const { placed } = load;
  const report = await load.stop();
  t.diagnostic(JSON.stringify(report));
  assert.deepEqual(Object.fromEntries(Object.keys(clean).map((name) => [name, report[name]])), clean);
  assert.ok(report.returns >= 2 * CALLS && report.callsMade > 0, 'it was under load');

  const ids = placed.map((id) => `'${id.replaceAll('-', '')}'`).join();
  const count = async (which) => Number(await postgres.ask(`SELECT count(*) FROM calls WHERE replace(id::text, '-', '') IN (${ids}) AND ${which}`));
  await eventually(async () => (await count("end_reason = 'completed'")) === report.callsMade, `${report.callsMade} rows have their end`, 15_000);
  assert.equal(await count('true'), placed.length, 'one row for each call');
  assert.equal(await count("status = 'answered' AND ended_at IS NULL"), CALLS, 'the others go on');
  assert.equal(Number(await postgres.ask('SELECT count(*) - count(DISTINCT id) FROM calls')), 0, 'no call has two rows');
});
