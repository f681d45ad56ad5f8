// A real Prometheus with the shipped settings and alerts scrapes real nodes: every panel has data, every alert can be
// evaluated, and an alert is delivered when a node dies.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { activeCall, candidate, dial, pair, pickUp, ringing } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster } from '../support/cluster.mjs';
import { dashboards, filledIn, panelsOf } from '../support/dashboards.mjs';
import { read, rendered, yaml, yamlIn } from '../support/deployment.mjs';
import { startPrometheus } from '../support/prometheus.mjs';

const NAMESPACE = 'switchboard';
/** Panels that may be empty while everything works. */
const NEEDLESS = [
  'Fail here', 'Alerts that fire', 'Without Redis', 'Failed commands and reconnections', 'Messages that wait', 'Messages that went astray',
  'Repairs', 'Oldest row that waits', 'Failed operations and connections', 'Limits reached', 'Slow readers cut off', 'Decisions made again',
  'Invariants violated', 'Clients sent away', 'Turned away', 'Spans exported', 'Spans dropped', 'Log lines dropped', 'Clock offset',
];

test('Prometheus, the dashboard and the alerts', async (t) => {
  const cluster = await startCluster(2, { args: ['--ring-timeout', '2s', '--reconnect-grace', '1s'] });
  t.after(() => cluster.stop());
  const alertmanager = await startAlertmanager(t);
  // The labels that Kubernetes adds; the others are as in compose.
  const targets = cluster.nodes.map((node, index) => ({ targets: [new URL(node.adminUrl).host], labels: { namespace: NAMESPACE, pod: `switchboard-${index}` } }));
  const prometheus = await startPrometheus(t, targets, { alertmanager: alertmanager.address });
  const sum = async (query) => (await prometheus.query(`sum(${query})`))[0]?.value;
  await eventually(async () => (await sum('switchboard_ready')) === 2, `it has asked both nodes\n${prometheus.run.output}`, 30_000);

  await talk(t, cluster);
  const over = Date.now() / 1_000;
  const lastSeen = async () => (await prometheus.query('min(timestamp(up{job="switchboard"}))'))[0].value;
  await eventually(async () => (await lastSeen()) > over, 'it has asked both since', 30_000);

  await t.test('every panel has something to show', async () => {
    for (const panel of dashboards().flatMap(panelsOf)) {
      let highest = -Infinity;
      for (const { expr } of panel.targets) {
        const series = await prometheus.query(filledIn(expr, '1m'));
        assert.ok(series.length > 0 || panel.title === 'Alerts that fire', `${panel.title} is empty: ${expr}`);
        // A quantile of no samples is NaN.
        const values = series.map(({ value }) => value).filter((value) => !Number.isNaN(value));
        highest = Math.max(highest, ...values);
      }
      if (!NEEDLESS.includes(panel.title)) assert.ok(highest > 0 && Number.isFinite(highest), `${panel.title}: ${highest}`);
      if (panel.title === 'Invariants violated') assert.equal(highest, 0);
    }
  });

  await t.test('the variables find the namespace and the nodes', async () => {
    for (const { query: { query } } of dashboards().flatMap(({ templating }) => templating.list.filter(({ type }) => type === 'query'))) {
      const [, series, label] = /^label_values\((.+), (\w+)\)$/.exec(query) ?? assert.fail(query);
      const { data } = await prometheus.api(`label/${label}/values`, { 'match[]': filledIn(series) });
      assert.equal(data.length, label === 'namespace' ? 1 : 2, `${query}: ${data}`);
    }
  });

  await t.test('the autoscaler is given the sockets of each pod by the rule that the documents show', async () => {
    const { rules: [rule] } = yamlIn(read('docs/guides/kubernetes.md'), 'seriesQuery');
    const [{ pods }] = rendered('overlays/production').one('HorizontalPodAutoscaler', 'switchboard').spec.metrics;
    const [, metric] = /^(\w+)\{/.exec(rule.seriesQuery);
    assert.equal(rule.name?.as ?? metric, pods.metric.name);
    assert.deepEqual(rule.resources.overrides, { namespace: { resource: 'namespace' }, pod: { resource: 'pod' } });
    const seen = await prometheus.query(rule.seriesQuery);
    assert.ok(seen.length > 0 && seen.every(({ metric: { namespace, pod } }) => namespace && pod));
    const asked = { '<<.Series>>': metric, '<<.LabelMatchers>>': `namespace="${NAMESPACE}",pod=~"switchboard-0|switchboard-1"`, '<<.GroupBy>>': 'pod' };
    const query = Object.entries(asked).reduce((text, [name, value]) => text.replaceAll(name, value), rule.metricsQuery);
    assert.ok(!query.includes('<<'), query);
    const answered = await prometheus.query(query);
    assert.deepEqual(answered.map(({ metric: { pod } }) => pod).sort(), ['switchboard-0', 'switchboard-1']);
    assert.equal(answered.reduce((total, { value }) => total + value, 0), await sum('switchboard_sockets'));
  });

  await t.test('every alert is evaluated, and none fires', async () => {
    const rules = await eventually(async () => {
      const { data } = await prometheus.api('rules');
      const all = data.groups.flatMap((group) => group.rules);
      return all.length > 0 && all.every(({ health }) => health !== 'unknown') && all;
    }, 'all are evaluated');
    const shipped = yaml('deploy/prometheus/rules/switchboard.yml').groups.flatMap((group) => group.rules);
    assert.deepEqual(rules.map(({ name }) => name).sort(), shipped.map(({ alert }) => alert).sort());
    assert.deepEqual(rules.filter(({ health, lastError }) => health !== 'ok' || lastError), []);
    assert.deepEqual(rules.filter(({ state }) => state === 'firing').map(({ name }) => name), []);
  });

  await t.test('a node that dies is told of, on the dashboard too', async () => {
    const [, dead] = cluster.nodes;
    await dead.kill();
    const alert = await eventually(() => alertmanager.got.find(({ labels }) => labels.alertname === 'SwitchboardNodeDied'), 'the alert is sent', 40_000);
    assert.deepEqual([alert.labels.namespace, alert.labels.severity], [NAMESPACE, 'warning']);
    assert.match(alert.annotations.runbook_url, /runbook\.md#switchboardnodedied$/);
    const { alerts } = (await prometheus.api('alerts')).data;
    const { state } = alerts.find(({ labels }) => labels.alertname === 'SwitchboardNodeDown') ?? assert.fail('nobody misses it');
    assert.equal(state, 'pending', 'two minutes have not passed');
    const panel = dashboards().flatMap(panelsOf).find(({ title }) => title === 'Alerts that fire');
    const shown = await prometheus.query(filledIn(panel.targets[0].expr));
    assert.ok(shown.some(({ metric }) => metric.alertname === 'SwitchboardNodeDied'));
  });
});

/** Produces a little of everything that users do. */
async function talk(t, cluster) {
  const [one, other] = cluster.nodes;
  const there = { url: one.url };
  // Across two nodes and on one, with good media and bad.
  for (const [from, to] of [[one, other], [one, one], [one, other]]) {
    const caller = await join(t, from, { userId: `caller-${Math.random()}` });
    const callee = await join(t, to, { userId: `callee-${Math.random()}` });
    const { callId } = await dial(caller, callee);
    await pickUp(callee, caller);
    caller.emit('call:ice-candidate', { toUserId: callee.userId, candidate: candidate() });
    await callee.next('call:ice-candidate');
    const report = { callId, roundTripMs: 40, lossPercent: 2, jitterMs: 5 };
    await caller.ok('call:stats', { ...report, candidateType: 'srflx', iceState: 'connected' });
    await callee.ok('call:stats', { ...report, candidateType: 'relay', iceState: 'failed' });
    await caller.ok('call:end', { toUserId: callee.userId });
    await callee.next('call:ended');
  }
  // An unanswered call; a device that is lost for good; another one that returns; an error.
  const unanswered = await ringing(t, there);
  const broken = await activeCall(t, cluster, { callee: { deviceId: 'tablet' } });
  await broken.callee.drop();
  const resumed = await activeCall(t, there, { callee: { deviceId: 'phone' } });
  await resumed.callee.drop();
  await resumed.callee.comeBack();
  await resumed.caller.ack('call:initiate', { toUserId: resumed.caller.userId, callType: 'audio' });
  const { caller, callee } = await pair(t, cluster);
  await callee.ack('call:reject', { toUserId: caller.userId });
  await unanswered.caller.next('call:ended');
  await broken.caller.next('call:ended');
}

/** Receives alerts like an Alertmanager. */
async function startAlertmanager(t) {
  const got = [];
  const server = createServer(async (request, response) => {
    let text = '';
    for await (const part of request.setEncoding('utf8')) text += part;
    if (request.url === '/api/v2/alerts') got.push(...JSON.parse(text));
    response.end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { got, address: `127.0.0.1:${server.address().port}` };
}
