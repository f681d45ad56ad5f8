// The alerts: each fires when it should and not otherwise, has an entry in the runbook, and is the same for compose and
// for Kubernetes.

import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { parse } from 'yaml';
import { prometheusRule } from '../../scripts/alerts.mjs';
import { dashboards, panelsOf } from '../support/dashboards.mjs';
import { filesUnder, knownSettings, path, read, rendered, succeed, yaml } from '../support/deployment.mjs';
import { privateFolder } from '../support/server.mjs';

const FILE = 'deploy/prometheus/rules/switchboard.yml';
const alerts = yaml(FILE).groups.flatMap(({ rules }) => rules);
// Parsed as text: `0x10` means eleven times 0 to promtool, and 16 to YAML.
const cases = parse(read('tests/deploy/alerts.yml'), { schema: 'failsafe' });

async function promtool(t, what, content) {
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, 'file.json');
  await writeFile(file, JSON.stringify(content));
  return succeed('promtool', [...what, file]);
}

function aMinuteBefore(time) {
  const [, minutes] = /^(\d+)m$/.exec(time) ?? assert.fail(`${time} is not in minutes`);
  return `${minutes - 1}m`;
}

/** One case, in the format of promtool. */
function unitTest({ alert, labels: own, annotations }, { at, series, labels, says }) {
  const fires = { exp_labels: { ...own, ...labels }, exp_annotations: { ...annotations, summary: says } };
  return {
    interval: '1m',
    input_series: Object.entries(series).map(([name, values]) => ({ series: name, values })),
    alert_rule_test: says
      ? [{ eval_time: aMinuteBefore(at), alertname: alert, exp_alerts: [] }, { eval_time: at, alertname: alert, exp_alerts: [fires] }]
      : [{ eval_time: at, alertname: alert, exp_alerts: [] }],
  };
}

describe('alerts', { concurrency: 4 }, () => {
  test('promtool has nothing to say', async () => {
    await succeed('promtool', ['check', 'rules', '--lint=all', '--lint-fatal', path(FILE)]);
  });

  test('each is shown firing, and staying quiet', () => {
    assert.deepEqual(Object.keys(cases), alerts.map(({ alert }) => alert));
    for (const [alert, { fires, quiet }] of Object.entries(cases)) {
      assert.ok(fires.length > 0 && fires.every(({ says }) => says), alert);
      assert.ok(quiet.length > 0 && quiet.every(({ says }) => !says), alert);
    }
  });

  for (const rule of alerts) {
    const { fires = [], quiet = [] } = cases[rule.alert] ?? {};
    test(`${rule.alert} fires and stays quiet`, async (t) => {
      const tests = [...fires, ...quiet].map((one) => unitTest(rule, one));
      await promtool(t, ['test', 'rules'], { rule_files: [path(FILE)], evaluation_interval: '1m', tests });
    });
  }

  test('each says how bad it is, what it is, and where to read on', () => {
    for (const { alert, labels, annotations } of alerts) {
      assert.deepEqual(Object.keys(labels), ['severity'], alert);
      assert.ok(['critical', 'warning'].includes(labels.severity), alert);
      assert.deepEqual(Object.keys(annotations), ['summary', 'description', 'runbook_url'], alert);
      assert.ok(!annotations.description.includes('{{'), `${alert}: what changes is in the summary`);
      assert.ok(annotations.runbook_url.endsWith(`/runbook.md#${alert.toLowerCase()}`), alert);
    }
    assert.equal(new Set(alerts.map(({ annotations }) => annotations.runbook_url.split('#')[0])).size, 1, 'they link to one place');
  });

  test('the runbook has an entry for each and no other, which says what it means, what to look at and what to do', () => {
    const [, ...entries] = read('docs/operations/runbook.md').split(/^### /m);
    assert.deepEqual(entries.map((entry) => entry.split('\n')[0]), alerts.map(({ alert }) => alert));
    for (const entry of entries) {
      for (const part of ['**Means**', '**Look**', '**Do**']) assert.equal(entry.split(part).length, 2, `${part} in ${entry}`);
    }
  });

  test('the runbook speaks of panels, lines of the log, settings, metrics and anchors that there are', () => {
    const runbook = read('docs/operations/runbook.md').replaceAll(/^```.*?^```|^ +```.*?^ +```/gms, '').replaceAll(/\s+/g, ' ');
    const all = (pattern) => [...runbook.replaceAll(/\*\*\w+\*\*/g, '').matchAll(pattern)].map(([, words]) => words);
    const panels = dashboards().flatMap(panelsOf).map(({ title }) => title);
    const italics = all(/\*([^*`]+)\*/g).filter((words) => words !== 'Words in italics');
    assert.ok(italics.length > 60);
    assert.deepEqual(italics.filter((words) => !panels.includes(words)), []);
    const code = filesUnder('src').map((file) => read(file)).join('').replaceAll(/\\\n\s+/g, '');
    const lines = all(/“([^”]+)”/g).filter((words) => words !== 'words in quotes');
    assert.ok(lines.length > 15);
    assert.deepEqual(lines.filter((words) => !code.includes(`"${words}`)), []);
    const settings = knownSettings();
    assert.deepEqual(all(/(SWITCHBOARD_[A-Z_]+)/g).filter((name) => !settings.has(name)), []);
    const anchors = [...read('docs/operations/runbook.md').matchAll(/^#+ (.+)$/gm)].map(([, title]) => title.toLowerCase().replaceAll(' ', '-'));
    assert.deepEqual(all(/\]\(#([^)]+)\)/g).filter((anchor) => !anchors.includes(anchor)), []);
  });

  test('production has the same', () => {
    assert.ok(read('k8s/components/prometheus-rule/prometheus-rule.yaml') === prometheusRule(read(FILE)), 'run `make alerts`');
    const { spec } = rendered('overlays/production').one('PrometheusRule', 'switchboard');
    assert.deepEqual(spec.groups, yaml(FILE).groups);
  });

  test('every limit is watched by one alert', () => {
    const limitsOf = (name) => /limit(?:=~|!~)"([^"]+)"/.exec(alerts.find(({ alert }) => alert === name).expr);
    assert.equal(limitsOf('SwitchboardClientLimits')[0].replace('!~', '=~'), limitsOf('SwitchboardOwnLimits')[0]);
  });

  test('memory is said to be short before the node is killed for it', () => {
    const [{ resources }] = rendered('overlays/production').one('Deployment', 'switchboard').spec.template.spec.containers;
    const limit = 2 ** 30 * Number(/^(\d+)Gi$/.exec(resources.limits.memory)[1]);
    const [, bytes] = /> (\d+)$/.exec(alerts.find(({ alert }) => alert === 'SwitchboardMemoryHigh').expr);
    assert.ok(bytes >= 0.6 * limit && bytes <= 0.8 * limit, `${bytes} of ${limit}`);
  });
});
