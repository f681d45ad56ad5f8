// deploy/helm/switchboard: helm renders it for many values, and for production the same objects as kustomize.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import * as yamlLibrary from 'yaml';
import { chartReadme, describeValues } from '../../scripts/chart.mjs';
import { environmentOf, fromVenv, objectsIn, path, podsOf, read, rendered, renderWith, succeed, yaml } from '../support/deployment.mjs';
import { privateFolder, runToExit } from '../support/server.mjs';

const CHART = path('deploy/helm/switchboard');
const HELM = path('tests/.helm/helm');
const PRODUCTION = join(CHART, 'ci/production-values.yaml');
const SECRET = { 'redis-url': 'redis://redis', 'database-url': 'postgres://postgres/calls', 'turn-secret': 'something to share' };

const run = promisify(execFile);

/** The objects that `helm template` renders with these arguments. */
function template(...args) {
  const text = execFileSync(HELM, ['template', 'switchboard', CHART, '--namespace', 'switchboard', ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  return { text, ...objectsIn(text) };
}

/** The error of helm; fails if it renders. */
async function refusal(...args) {
  const said = await run(HELM, ['template', 'switchboard', CHART, ...args]).then(
    () => assert.fail(`helm renders with ${args.join(' ')}`),
    ({ stderr }) => stderr,
  );
  return said;
}

const set = (...pairs) => pairs.flatMap((pair) => ['--set', pair]);
const LEAST = set('settings.SWITCHBOARD_AUTH=jwt', 'secret.existingSecret=switchboard');

test('helm lint has nothing to say', async () => {
  await succeed(HELM, ['lint', '--strict', CHART, '--values', PRODUCTION]);
});

describe('production', () => {
  const OWN_LABELS = ['app.kubernetes.io/instance', 'app.kubernetes.io/version', 'app.kubernetes.io/managed-by', 'app.kubernetes.io/part-of', 'helm.sh/chart'];

  /** The object without each tool's own additions, and with variables in one order. */
  const plain = (object) => {
    const strip = (value) => {
      if (Array.isArray(value)) return value.map(strip);
      if (value === null || typeof value !== 'object') return typeof value === 'string' ? value.replace(/^switchboard-[a-z0-9]{10}$/, 'switchboard') : value;
      const entries = Object.entries(value).filter(([key]) => !OWN_LABELS.includes(key) && !key.startsWith('helm.sh/hook') && !key.startsWith('checksum/'));
      const kept = entries.map(([key, inner]) => [key, strip(inner)]).filter(([key, inner]) => key !== 'annotations' || Object.keys(inner).length > 0);
      return Object.fromEntries(kept);
    };
    const result = strip(object);
    delete result.metadata.namespace;
    const container = result.spec?.template?.spec?.containers?.[0];
    container?.env?.sort((a, b) => a.name.localeCompare(b.name));
    return result;
  };
  const nameOf = ({ kind, metadata }) => `${kind}/${metadata.name}`;
  const byName = (objects) => Object.fromEntries(objects.map(plain).map((object) => [nameOf(object), object]));

  const chart = template('--values', PRODUCTION);
  const sameObjects = (release, overlay) => {
    const ours = byName(release.all.filter(({ metadata }) => metadata.annotations?.['helm.sh/hook'] !== 'test'));
    // Helm does not render a namespace: `--create-namespace` creates it.
    const theirs = byName(overlay.all.filter(({ kind }) => kind !== 'Namespace'));
    assert.deepEqual(Object.keys(ours).sort(), Object.keys(theirs).sort());
    for (const name of Object.keys(theirs)) assert.deepEqual(ours[name], theirs[name], name);
  };

  test('the chart renders the same objects as the overlay', () => sameObjects(chart, rendered('overlays/production')));

  for (const [component, values] of [
    ['private-ca', set('privateCa=switchboard-ca')],
    ['jwt-secret', set('secret.keys.jwtSecret=jwt-secret')],
  ]) {
    test(`the same with the component ${component}`, () => {
      sameObjects(template('--values', PRODUCTION, ...values), objectsIn(renderWith((names) => [...names, component])));
    });
  }

  test('the same with an HTTPRoute instead of the Ingress', () => {
    const route = ['ingress.enabled=false', 'httpRoute.enabled=true', 'httpRoute.parentRefs[0].name=public', 'httpRoute.parentRefs[0].namespace=gateway', 'httpRoute.hostnames={calls.example.com}'];
    const overlay = objectsIn(renderWith((names) => names.map((name) => (name === 'ingress-haproxy' ? 'http-route' : name))));
    sameObjects(template('--values', PRODUCTION, ...set(...route, 'service.annotations=null')), overlay);
  });

  test('the binary takes the settings', async () => {
    for (const { name, pod } of podsOf(chart)) {
      const [container] = pod.containers;
      const environment = environmentOf(container, chart, { switchboard: SECRET });
      const { code, stderr } = await runToExit(['config', ...(container.args ?? []).filter((arg) => arg !== 'migrate')], { env: environment });
      assert.equal(code, 0, `${name}: ${stderr}`);
    }
  });

  test('the migration is done before nodes change', () => {
    const { metadata } = chart.all.find(({ kind }) => kind === 'Job');
    assert.equal(metadata.annotations['helm.sh/hook'], 'pre-install,pre-upgrade');
  });
});

const SETS = {
  least: LEAST,
  'with values for the Secret': set('settings.SWITCHBOARD_AUTH=jwt', 'secret.values.redisUrl=redis://redis', 'secret.values.databaseUrl=postgres://postgres/calls', 'secret.values.jwtSecret=0123456789abcdef0123456789abcdef'),
  'without autoscaler': [...LEAST, ...set('autoscaling.enabled=false', 'replicas=5')],
  'scaled by CPU alone': [...LEAST, ...set('autoscaling.sockets=0')],
  'scaled by sockets alone': [...LEAST, ...set('autoscaling.cpu=0')],
  'image by digest': [...LEAST, ...set(`image.digest=sha256:${'0'.repeat(64)}`, 'image.pullPolicy=IfNotPresent', 'imagePullSecrets={registry}')],
  'ingress-nginx': [...LEAST, ...set('ingress.enabled=true', 'ingress.controller=nginx')],
  'another ingress controller': [...LEAST, ...set('ingress.enabled=true', 'ingress.controller=none', 'ingress.className=other', 'ingress.tlsSecret=')],
  'Gateway API': [...LEAST, ...set('httpRoute.enabled=true', 'httpRoute.parentRefs[0].name=public', 'httpRoute.hostnames={calls.example.com}')],
  'all monitoring': [...LEAST, ...set('serviceMonitor.enabled=true', 'serviceMonitor.labels.release=kps', 'prometheusRule.enabled=true', 'dashboard.enabled=true')],
  'NodeLocal DNS on the address of kube-dns too': [...LEAST, ...set('networkPolicy.dnsNetworks={169.254.20.10/32,10.96.0.10/32}')],
  'no policies, no budget, no account': [...LEAST, ...set('networkPolicy.enabled=false', 'podDisruptionBudget.enabled=false', 'serviceAccount.create=false', 'migration.enabled=false', 'spread=false')],
  'a private CA': [...LEAST, ...set('privateCa=ours', 'extraVolumes[0].name=more', 'extraVolumes[0].emptyDir.medium=Memory', 'extraVolumeMounts[0].name=more', 'extraVolumeMounts[0].mountPath=/more')],
  'placement and labels': [...LEAST, ...set('nodeSelector.pool=calls', 'tolerations[0].key=calls', 'tolerations[0].operator=Exists', 'priorityClassName=high', 'podLabels.team=calls', 'podAnnotations.note=x', 'extraEnv[0].name=TZ', 'extraEnv[0].value=UTC')],
  'names of its own': [...LEAST, ...set('fullnameOverride=calls', 'nameOverride=calls')],
};

const CUSTOM = {
  'monitoring.coreos.com/v1': '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1',
  'gateway.networking.k8s.io/v1': '@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1',
};

describe('values', () => {
  const charts = Object.fromEntries(Object.entries(SETS).map(([name, args]) => [name, template(...args)]));

  test('Kubernetes takes what is rendered for each set', async (t) => {
    const folder = await privateFolder();
    t.after(() => rm(folder, { recursive: true }));
    const files = await Promise.all(
      Object.values(charts).map(async ({ text }, index) => {
        const file = join(folder, `${index}.yaml`);
        await writeFile(file, text);
        return file;
      }),
    );
    const said = await succeed(fromVenv('kubernetes-validate'), ['-k', '1.37', '--strict', ...files]);
    const unknown = [...said.matchAll(/WARN .* kind (\S+) with api version (\S+)/g)].map(([, , api]) => api);
    assert.deepEqual(unknown.filter((api) => !CUSTOM[api]), [], said);
  });

  for (const [name, chart] of Object.entries(charts)) {
    test(`${name}: valid, and may run in a restricted namespace`, async () => {
      for (const object of chart.all.filter(({ apiVersion }) => CUSTOM[apiVersion])) {
        const module = await import(`${CUSTOM[object.apiVersion]}/${object.kind}`);
        new module[object.kind](object).validate();
      }
      const pods = [...podsOf(chart), ...chart.of('Pod').map(({ metadata, spec }) => ({ name: metadata.name, pod: spec }))];
      assert.ok(pods.length >= 2);
      for (const { name: pod, pod: spec } of pods) {
        assert.equal(spec.automountServiceAccountToken, false, pod);
        assert.equal(spec.securityContext.runAsNonRoot, true, pod);
        assert.equal(spec.securityContext.seccompProfile.type, 'RuntimeDefault', pod);
        for (const { securityContext, resources } of spec.containers) {
          assert.deepEqual(securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } }, pod);
          assert.ok(resources.limits.memory, pod);
        }
      }
      const names = chart.all.map(({ kind, metadata }) => `${kind}/${metadata.name}`);
      assert.equal(new Set(names).size, names.length, 'no object twice');
    });
  }

  test('each controller gets stickiness and a long time limit for websockets', () => {
    const annotations = template(...SETS['ingress-nginx']).of('Ingress')[0].metadata.annotations;
    assert.equal(annotations['nginx.ingress.kubernetes.io/session-cookie-name'], 'SIO_NODE');
    assert.ok(Number(annotations['nginx.ingress.kubernetes.io/proxy-read-timeout']) >= 3600);
    const [rule] = template(...SETS['Gateway API']).of('HTTPRoute')[0].spec.rules;
    assert.deepEqual(rule.sessionPersistence, { sessionName: 'SIO_NODE', type: 'Cookie' });
  });

  test('a Secret that the chart makes reaches the migration before it is there', () => {
    const chart = template(...SETS['with values for the Secret']);
    const [migration] = chart.of('Job');
    const { secretKeyRef } = migration.spec.template.spec.containers[0].env[0].valueFrom;
    const secret = chart.of('Secret').find(({ metadata }) => metadata.name === secretKeyRef.name);
    const weight = ({ metadata }) => Number(metadata.annotations['helm.sh/hook-weight']);
    assert.ok(secret.stringData[secretKeyRef.key]);
    assert.ok(weight(secret) < weight(migration));
  });

  test('`helm test` examines the settings, secrets and authorities of the nodes', () => {
    const chart = template('--values', PRODUCTION, ...set('privateCa=ours', 'test.url=https://calls.example.com'));
    const [{ spec }] = chart.of('Pod');
    const [node] = chart.of('Deployment')[0].spec.template.spec.containers;
    const [container] = spec.containers;
    assert.deepEqual(container.args, ['doctor', '--url', 'https://calls.example.com']);
    for (const part of ['image', 'env', 'envFrom', 'volumeMounts', 'securityContext']) assert.deepEqual(container[part], node[part], part);
    assert.deepEqual(template(...LEAST).of('Pod')[0].spec.containers[0].args, ['doctor']);
  });

  test('a change of a setting replaces the pods', () => {
    const checksum = (...args) => template(...LEAST, ...args).of('Deployment')[0].spec.template.metadata.annotations['checksum/settings'];
    assert.notEqual(checksum(), checksum(...set('settings.SWITCHBOARD_RING_TIMEOUT=40s')));
  });
});

describe('refused by the schema', () => {
  const cases = [
    ['no mode', set('secret.existingSecret=a'), /SWITCHBOARD_AUTH/],
    ['an unknown mode', set('settings.SWITCHBOARD_AUTH=none', 'secret.existingSecret=a'), /SWITCHBOARD_AUTH/],
    ['no Secret', set('settings.SWITCHBOARD_AUTH=jwt'), /\/secret/],
    ['a secret among the settings', [...LEAST, ...set('settings.SWITCHBOARD_TURN_SECRET=x')], /SWITCHBOARD_TURN_SECRET/],
    ['an address to listen on', [...LEAST, ...set('settings.SWITCHBOARD_LISTEN=0.0.0.0:80')], /SWITCHBOARD_LISTEN/],
    ['an unknown value', [...LEAST, ...set('replica=3')], /replica/],
    ['an unknown controller', [...LEAST, ...set('ingress.controller=traefik')], /controller/],
    ['a digest that is none', [...LEAST, ...set('image.digest=latest')], /digest/],
    ['a grace shorter than the drain', [...LEAST, ...set('terminationGracePeriodSeconds=10')], /terminationGracePeriodSeconds/],
    ['a route to no gateway', [...LEAST, ...set('httpRoute.enabled=true')], /parentRefs/],
    ['a SQLite file', set('settings.SWITCHBOARD_AUTH=jwt', 'secret.values.redisUrl=redis://redis', 'secret.values.databaseUrl=sqlite://calls.db'), /databaseUrl/],
  ];
  for (const [name, args, said] of cases) {
    test(name, async () => assert.match(await refusal(...args), said));
  }
});

describe('what is written about it', () => {
  const values = read('deploy/helm/switchboard/values.yaml');

  test('each value has a description, and the README is made from it', () => {
    assert.deepEqual(describeValues(values, yamlLibrary).filter(({ description }) => !description), []);
    assert.ok(read('deploy/helm/switchboard/README.md') === chartReadme(values, yamlLibrary), 'run `make chart`');
  });

  test('the version is the one of the binary', () => {
    const [, version] = /^version = "(.+)"$/m.exec(read('Cargo.toml'));
    const { appVersion, version: chartVersion } = yaml('deploy/helm/switchboard/Chart.yaml');
    assert.equal(appVersion, version);
    assert.equal(chartVersion, version);
  });

  test('a package has the alerts and the dashboard in it', async (t) => {
    const folder = await privateFolder();
    t.after(() => rm(folder, { recursive: true }));
    await succeed(HELM, ['package', CHART, '--destination', folder]);
    const [, version] = /^version = "(.+)"$/m.exec(read('Cargo.toml'));
    const { stdout } = await run('tar', ['-xzOf', join(folder, `switchboard-${version}.tgz`), 'switchboard/files/overview.json'], { maxBuffer: 1 << 24 });
    assert.equal(stdout, read('deploy/grafana/dashboards/overview.json'));
  });
});
