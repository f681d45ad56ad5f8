// Three nodes behind HAProxy, replaced or killed under calls. A large run:
//
//   LOAD_CALLS=150 LOAD_DIALLING=20 LOAD_ROUNDS=3 node --test --test-reporter=spec tests/cluster/restart.test.mjs

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startBalancer } from '../support/balancer.mjs';
import { startCluster } from '../support/cluster.mjs';
import { Load } from '../support/load.mjs';

const CALLS = Number(process.env.LOAD_CALLS ?? 30);
const DIALLING = Number(process.env.LOAD_DIALLING ?? 5);
const ROUNDS = Number(process.env.LOAD_ROUNDS ?? 1);

async function underLoad(t, options = {}) {
  const cluster = await startCluster(3, { args: ['--drain-window', '3s'] });
  t.after(() => cluster.stop());
  const balancer = await startBalancer(cluster.nodes);
  t.after(() => balancer.stop());
  const load = new Load({ url: balancer.url, calls: CALLS, dialling: DIALLING, ...options });
  t.after(() => load.close());
  await load.start();
  await load.goneOn();
  return { cluster, load };
}

const clean = { failures: [], ended: 0, missing: 0, doubled: 0, outOfOrder: 0, examples: [] };
const judged = (report) => Object.fromEntries(Object.keys(clean).map((name) => [name, report[name]]));

test('nodes are replaced in turn under load: no call ends and no message is lost', async (t) => {
  // Some connect over polling, each bound to its node by the balancer's cookie.
  const { cluster, load } = await underLoad(t, { polling: Math.ceil(CALLS / 10) });
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const node of cluster.nodes) {
      await node.restart();
      await load.goneOn();
    }
  }
  const report = await load.stop();
  t.diagnostic(JSON.stringify(report));
  assert.deepEqual({ ...judged(report), repeated: report.repeated }, { ...clean, repeated: 0 });
  assert.ok(report.returns >= CALLS && report.callsMade > 0, 'it was under load');
});

test('nodes are killed in turn under load: no call ends', async (t) => {
  const { cluster, load } = await underLoad(t);
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const node of cluster.nodes) {
      await node.kill('SIGKILL');
      await load.goneOn();
      await node.start();
    }
  }
  const report = await load.stop({ within: 3_000 });
  t.diagnostic(JSON.stringify(report));
  // Messages inside a node are lost with it, more of them the busier the machine is. Messages that are sent while a
  // device is disconnected, more than one each time, are not.
  const { missing } = report;
  assert.ok(missing <= report.returns * 0.5, `${missing} of ${report.sent} are missing`);
  assert.deepEqual(judged({ ...report, missing: 0, examples: [] }), clean);
});
