// The dashboard: valid for Grafana, and, like the alerts, made only of metrics, labels and label values that nodes
// really have.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { compose, read, yaml } from '../support/deployment.mjs';
import { startCluster } from '../support/cluster.mjs';
import { dashboards, panelsOf, queriesOf, selectorsIn } from '../support/dashboards.mjs';
import { scrape } from '../support/metrics.mjs';
import { complaintsOf } from '../support/types.mjs';

const RULES = yaml('deploy/prometheus/rules/switchboard.yml').groups.flatMap(({ rules }) => rules);
/** Labels that Prometheus adds, and its own series. */
const GIVEN = { namespace: null, instance: null, job: ['switchboard'] };
const OWN = { up: {}, ALERTS: { alertname: ['Switchboard.+'], alertstate: ['firing'], severity: null } };

/** The types as JSON has them: texts and numbers for enums. */
const TYPES = `
import type { Dashboard, GraphFieldConfig, Panel, RowPanel } from '@grafana/schema';
type Plain<T> = T extends string ? \`\${T}\` : T extends (infer One)[] ? Plain<One>[] : T extends object ? { [Key in keyof T]: Plain<T[Key]> } : T;
type Query = { refId: string; expr: string; legendFormat?: string; instant?: boolean; range?: boolean; format?: 'table' };
interface It {
  dashboard: Plain<Omit<Dashboard, 'panels'>>;
  rows: Plain<RowPanel>[];
  panels: (Omit<Plain<Panel>, 'targets'> & { targets: Query[] })[];
  styles: Plain<Partial<GraphFieldConfig>>[];
}`;

for (const dashboard of dashboards()) {
  describe(`dashboard ${dashboard.title}`, () => {
    const panels = panelsOf(dashboard);

    test("is what Grafana's own types say a dashboard is", () => {
      const rows = dashboard.panels.filter(({ type }) => type === 'row');
      const styles = panels.flatMap(({ fieldConfig }) => fieldConfig.defaults.custom ?? []);
      const said = { dashboard: { ...dashboard, panels: undefined }, rows, panels, styles };
      assert.deepEqual(complaintsOf(`${TYPES}\nexport const it: It = ${JSON.stringify(said)};`), []);
    });

    test('has panels that can be told apart, each with its words', () => {
      for (const of of ['id', 'title']) {
        const all = dashboard.panels.map((panel) => panel[of]);
        assert.deepEqual(all.filter((one, index) => all.indexOf(one) !== index), [], of);
      }
      for (const { title, description, type, targets } of panels) {
        assert.ok(description?.length > 0, title);
        assert.ok(['stat', 'timeseries', 'table'].includes(type), `${title}: ${type}`);
        assert.deepEqual(targets.map(({ refId }) => refId), targets.map((_, index) => 'ABCDEFGH'[index]), title);
        assert.ok(targets.length === 1 || targets.every(({ legendFormat }) => legendFormat), `${title}: lines have names`);
      }
    });

    test('has them side by side, row by row', () => {
      const taken = new Map();
      for (const { title, gridPos: { x, y, w, h } } of dashboard.panels) {
        assert.ok(x >= 0 && w > 0 && h > 0 && x + w <= 24, title);
        for (let column = x; column < x + w; column += 1) {
          for (let line = y; line < y + h; line += 1) {
            assert.equal(taken.get(`${column} ${line}`), undefined, `${title} covers another one`);
            taken.set(`${column} ${line}`, title);
          }
        }
      }
      const height = Math.max(...dashboard.panels.map(({ gridPos: { y, h } }) => y + h));
      assert.equal(taken.size, 24 * height, 'there are no gaps');
      assert.equal(dashboard.panels[0].type, 'row');
    });

    test('asks the Prometheus that is chosen, for the nodes that are chosen', () => {
      const variables = dashboard.templating.list;
      const [chosen, ...others] = variables;
      assert.deepEqual([chosen.name, chosen.type, chosen.query], ['datasource', 'datasource', 'prometheus']);
      const { datasources: [source] } = yaml('deploy/grafana/provisioning/datasources/prometheus.yaml');
      assert.equal(chosen.current.value, source.uid);
      const mine = { type: 'prometheus', uid: '${datasource}' };
      for (const { datasource, title, name } of [...panels, ...others]) assert.deepEqual(datasource, mine, title ?? name);
      // If Prometheus has no namespace label, all namespaces are selected, including series without the label.
      for (const { includeAll, allValue, current } of others) assert.deepEqual([includeAll, allValue, current.value], [true, '.*', '$__all']);
      const known = new Set([...variables.map(({ name }) => name), '__rate_interval', '__all']);
      const used = [...JSON.stringify(dashboard).matchAll(/\$\{?(\w+)/g)].map(([, name]) => name);
      assert.deepEqual(used.filter((name) => !known.has(name)), []);
      for (const query of queriesOf(panels)) {
        for (const { name, labels } of selectorsIn(query)) {
          assert.equal(labels.namespace, '$namespace', query);
          if (!(name in OWN)) assert.equal(labels.instance, '$instance', query);
        }
      }
    });
  });
}

test('the types are those of the Grafana that compose runs', () => {
  const [, version] = /:(\d+\.\d+)\./.exec(compose().services.grafana.image);
  assert.ok(JSON.parse(read('tests/package.json')).dependencies['@grafana/schema'].startsWith(`${version}.`));
});

describe('what is asked of Prometheus', () => {
  let metrics;
  let cluster;
  before(async () => {
    cluster = await startCluster(1);
    metrics = valuesIn((await scrape(cluster)).samples);
  });
  after(() => cluster.stop());

  const asked = [
    ...dashboards().flatMap((dashboard) => queriesOf(panelsOf(dashboard))),
    ...RULES.map(({ expr }) => expr),
    ...[...read('docs/reference/metrics.md').matchAll(/`([^`]*\b(?:rate|histogram_quantile)\([^`]*)`/g)].map(([, query]) => query),
  ];

  test('are metrics, labels and values that nodes have', () => {
    assert.ok(asked.length > 100);
    for (const query of asked) {
      const selectors = selectorsIn(query);
      assert.ok(selectors.length > 0, query);
      for (const { name, labels } of selectors) {
        const has = { ...GIVEN, ...(OWN[name] ?? metrics[name] ?? assert.fail(`there is no ${name}: ${query}`)) };
        for (const [label, text] of Object.entries(labels)) {
          assert.ok(label in has, `${name} has no label ${label}: ${query}`);
          if (!has[label] || text.startsWith('$')) continue;
          for (const value of text.split('|')) assert.ok(has[label].includes(value), `${name} has no ${label}="${value}"`);
        }
      }
    }
  });

  test('is kept apart, named and matched by labels that it has', () => {
    const named = (text, pattern) => [...text.matchAll(pattern)].flatMap(([, names]) => names.split(',').map((name) => name.trim()));
    const check = (query, labels) => {
      const all = selectorsIn(query).flatMap(({ name }) => Object.keys({ ...GIVEN, ...(OWN[name] ?? metrics[name]) }));
      for (const label of labels) assert.ok(all.includes(label), `nothing has the label ${label}: ${query}`);
    };
    for (const query of asked) check(query, named(query, /\b(?:by|on) \(([^)]+)\)/g));
    for (const { targets } of dashboards().flatMap(panelsOf)) {
      for (const { expr, legendFormat = '' } of targets) check(expr, named(legendFormat, /\{\{(\w+)\}\}/g));
    }
    for (const { expr, annotations } of RULES) check(expr, named(annotations.summary, /\$labels\.(\w+)/g));
  });

  test('histograms are asked for their parts, and counters for how they grow', () => {
    for (const query of asked) {
      for (const { name, isRange } of selectorsIn(query)) {
        if (name.endsWith('_total') && name !== 'switchboard_invariant_violations_total') assert.ok(isRange, query);
        if (/^switchboard_.*_seconds_bucket$/.test(name)) assert.ok(isRange && query.includes('le'), query);
      }
    }
  });
});

/** The values of each label of each metric. */
function valuesIn(samples) {
  const metrics = {};
  for (const { name, labels } of samples) {
    const known = (metrics[name] ??= {});
    for (const [label, value] of Object.entries(labels)) {
      known[label] ??= [];
      if (!known[label].includes(value)) known[label].push(value);
    }
  }
  return metrics;
}
