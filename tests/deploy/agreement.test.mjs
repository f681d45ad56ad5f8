// Values that must agree in several places: settings, ports, probes, versions, and shutdown times.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { compose, dockerfile, environmentOf, filesUnder, knownSettings, LAYERS, podsOf, read, rendered, yaml } from '../support/deployment.mjs';
import { runToExit } from '../support/server.mjs';

const known = knownSettings();
const image = dockerfile();
const { services } = compose();
const layers = Object.fromEntries(LAYERS.map((layer) => [layer, rendered(layer)]));
const production = layers['overlays/production'];
const SECRETS = {
  switchboard: { 'redis-url': 'redis://redis', 'database-url': 'postgres://postgres/calls', 'turn-secret': 'something to share' },
};

const isOurs = (name) => /(^|\/)switchboard:/.test(name);

/** Each container of the project, with its settings. */
const ours = [
  ...Object.entries(services)
    .filter(([, { image: name }]) => isOurs(name))
    .map(([name, { environment, command = [] }]) => ({ name: `compose ${name}`, given: environment, args: command })),
  // The base alone is not complete: the overlays define the origins.
  ...LAYERS.filter((layer) => layer !== 'base').flatMap((layer) =>
    podsOf(layers[layer]).flatMap(({ name, pod }) =>
      pod.containers
        .filter((container) => isOurs(container.image))
        .map((container) => ({ name: `${layer} ${name}`, given: environmentOf(container, layers[layer], SECRETS), args: container.args ?? [] })),
    ),
  ),
];

describe('settings', () => {
  test('every name is a setting of the binary', () => {
    const files = [...filesUnder('deploy'), ...filesUnder('k8s')];
    const named = new Set(files.flatMap((file) => read(file).match(/SWITCHBOARD_[A-Z_]+/g) ?? []));
    assert.ok(named.size > 5);
    assert.deepEqual([...named].filter((name) => !known.has(name)), []);
  });

  for (const { name, given, args } of ours) {
    test(`the binary takes those of ${name}`, async () => {
      const environment = { ...image.environment, ...given };
      const flags = args.filter((arg) => arg !== 'migrate');
      const { code, stderr } = await runToExit(['config', ...flags], { env: environment });
      assert.equal(code, 0, stderr);
    });
  }

  test('nodes of one place are set alike', () => {
    assert.equal(ours.length, 8);
    assert.deepEqual(services.node2, services.node1);
    assert.deepEqual(services.node3, services.node1);
  });
});

describe('ports', () => {
  const portOf = (address) => Number(address.split(':').at(-1));
  const clients = portOf(image.environment.SWITCHBOARD_LISTEN);
  const admin = portOf(image.environment.SWITCHBOARD_ADMIN_LISTEN);

  test('the image says which it listens on', () => {
    assert.deepEqual(image.all('EXPOSE')[0].split(' ').map(Number), [clients, admin]);
    // It asks where SWITCHBOARD_ADMIN_LISTEN says.
    assert.deepEqual(image.healthCheck.slice(1), ['health']);
  });

  for (const [layer, objects] of Object.entries(layers)) {
    test(`k8s/${layer} agrees`, () => {
      const [{ ports, startupProbe, livenessProbe, readinessProbe }] = objects.one('Deployment', 'switchboard').spec.template.spec.containers;
      const named = Object.fromEntries(ports.map(({ name, containerPort }) => [name, containerPort]));
      assert.deepEqual(named, { clients, admin });
      const { data } = objects.one('ConfigMap', 'switchboard');
      assert.deepEqual([portOf(data.SWITCHBOARD_LISTEN), portOf(data.SWITCHBOARD_ADMIN_LISTEN)], [clients, admin]);
      const probes = [startupProbe, livenessProbe, readinessProbe].map(({ httpGet }) => [httpGet.path, httpGet.port]);
      assert.deepEqual(probes, [['/livez', 'admin'], ['/livez', 'admin'], ['/readyz', 'admin']]);
      assert.equal(objects.one('Service', 'switchboard-admin').spec.ports[0].port, admin);
      const letIn = (name) => objects.one('NetworkPolicy', name).spec.ingress.flatMap(({ ports: all }) => all.map(({ port }) => port));
      assert.deepEqual(letIn('switchboard'), [admin]);
      if (layer !== 'base') assert.deepEqual(letIn('switchboard-clients'), [clients]);
    });
  }

  test('compose agrees', () => {
    const nodes = ['node1', 'node2', 'node3'];
    const { environment } = services.balancer;
    assert.deepEqual(nodes.map((_, index) => environment[`NODE_${index + 1}`]), nodes.map((name) => `${name}:${clients}`));
    assert.deepEqual(nodes.map((_, index) => environment[`NODE_${index + 1}_ADMIN`]), nodes.map(() => `${admin}`));
    assert.ok(services.balancer.ports[0].endsWith(`:${portOf(environment.BALANCER_LISTEN)}`));
    const [{ targets }] = yaml('deploy/prometheus/targets/switchboard.yml');
    assert.deepEqual(targets, nodes.map((name) => `${name}:${admin}`));
  });
});

describe('time to leave', () => {
  const seconds = (text) => Number(/^(\d+)s$/.exec(text)[1]);
  const constant = (file, name) => Number(new RegExp(`const ${name}: Duration = Duration::from_secs\\((\\d+)\\)`).exec(read(file))[1]);
  // The order in src/app.rs: connections are closed, devices handed over, history is written.
  const afterwards =
    constant('src/gateway/mod.rs', 'CLOSE_TIMEOUT') + constant('src/calls/remote.rs', 'MAX_HAND_OVER') + constant('src/history/recorder.rs', 'CLOSE_TIMEOUT');

  for (const [layer, objects] of Object.entries(layers)) {
    test(`k8s/${layer} gives a node enough`, () => {
      const { spec } = objects.one('Deployment', 'switchboard').spec.template;
      const before = spec.containers[0].lifecycle.preStop.sleep.seconds;
      const window = seconds(objects.one('ConfigMap', 'switchboard').data.SWITCHBOARD_DRAIN_WINDOW);
      assert.ok(before + window + afterwards < spec.terminationGracePeriodSeconds, `${before} + ${window} + ${afterwards} s`);
    });
  }

  test('the next one is told to stop when the one before has left', () => {
    const { spec } = production.one('Deployment', 'switchboard');
    const window = seconds(production.one('ConfigMap', 'switchboard').data.SWITCHBOARD_DRAIN_WINDOW);
    const handOver = constant('src/calls/remote.rs', 'MAX_HAND_OVER');
    assert.ok(spec.minReadySeconds >= spec.template.spec.containers[0].lifecycle.preStop.sleep.seconds + window + handOver);
  });

  test('compose gives a node enough', () => {
    const window = seconds(services.node1.environment.SWITCHBOARD_DRAIN_WINDOW);
    assert.ok(window + afterwards < seconds(services.node1.stop_grace_period));
  });
});

describe('memory', () => {
  const MIB = 1024 * 1024;
  const page = read('docs/operations/security.md');
  const rowOf = (pattern) => Number((pattern.exec(page) ?? assert.fail(`${pattern} is not in the page`)).at(-1));
  const base = rowOf(/^\| the process, .* \| (\d+) \|$/m);
  const socket = rowOf(/idle sockets \(`sockets`\), (\d+) KiB each/) * 1024;
  const factor = rowOf(/^\| `buffers`, times ([\d.]+) /m);
  const bytesOf = (text) => {
    const [, number, unit] = /^(\d+)(Mi|Gi)$/.exec(text) ?? assert.fail(text);
    return Number(number) * (unit === 'Gi' ? 1024 : 1) * MIB;
  };

  async function sumOf(environment) {
    const { code, stdout, stderr } = await runToExit(['config'], { env: environment });
    assert.equal(code, 0, stderr);
    const limit = (name) => Number((new RegExp(`(?<![\\w-])${name}=(\\d+)`).exec(stdout) ?? assert.fail(`no ${name} in ${stdout}`))[1]);
    return base * MIB + limit('sockets') * socket + limit('buffers') * factor;
  }

  test('the page adds up what a node takes by default', async () => {
    const sum = rowOf(/^\| sum \| (\d+) \|$/m);
    assert.equal(Math.round((await sumOf({})) / MIB), sum);
  });

  for (const layer of LAYERS) {
    test(`k8s/${layer} gives a node as much`, async () => {
      const deployment = layers[layer].one('Deployment', 'switchboard');
      const { limits } = deployment.spec.template.spec.containers[0].resources;
      const { data } = layers[layer].one('ConfigMap', 'switchboard');
      const set = data.SWITCHBOARD_LIMITS ? { SWITCHBOARD_LIMITS: data.SWITCHBOARD_LIMITS } : {};
      const sum = await sumOf(set);
      assert.ok(bytesOf(limits.memory) >= sum, `${limits.memory} is less than ${Math.ceil(sum / MIB)} MiB`);
    });
  }
});

test('the traces that k8s/production suggests can leave, and the binary takes them', async () => {
  const literals = [...read('k8s/overlays/production/kustomization.yaml').matchAll(/^ +# - (OTEL_\w+)=(.+)$/gm)];
  const environment = Object.fromEntries(literals.map(([, name, value]) => [name, value]));
  const port = Number(new URL(environment.OTEL_EXPORTER_OTLP_ENDPOINT).port);
  const leads = production.one('NetworkPolicy', 'switchboard').spec.egress.flatMap(({ ports }) => ports.map(({ port: number }) => number));
  assert.ok(leads.includes(port), `${leads}`);
  const { code, stdout, stderr } = await runToExit(['config'], { env: environment });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^# OTEL_TRACES_SAMPLER_ARG = 0\.01$/m);
});

describe('versions', () => {
  const [, version] = /^version = "(.+)"$/m.exec(read('Cargo.toml'));
  const inKubernetes = Object.values(layers).flatMap((objects) => podsOf(objects).flatMap(({ pod }) => pod.containers.map(({ image: name }) => name)));
  const inCompose = Object.values(services).map(({ image: name }) => name);
  const inDockerfile = image.bases;
  assert.ok(inDockerfile.length > 1);

  test('every image is pinned', () => {
    for (const name of [...inKubernetes, ...inCompose, ...inDockerfile]) {
      const [, tag] = /^[a-z0-9./-]+:([\w.-]+)$/.exec(name) ?? assert.fail(name);
      assert.match(tag, /\d+\.\d+|\d{8}/, `${name} names no version`);
      assert.doesNotMatch(tag, /latest/);
    }
  });

  test('our own is the one of Cargo.toml', () => {
    const named = [...inKubernetes, ...inCompose].filter(isOurs);
    assert.ok(named.length > 4);
    for (const name of named) assert.ok(name.endsWith(`:${version}`), name);
  });

  test('one image has one version everywhere', () => {
    const tags = {};
    for (const name of [...inKubernetes, ...inCompose]) (tags[name.split(':')[0].split('/').at(-1)] ??= new Set()).add(name.split(':')[1]);
    for (const [name, all] of Object.entries(tags)) assert.equal(all.size, 1, `${name}: ${[...all]}`);
  });
});

describe('addresses of clients', () => {
  test('are said by the balancer and believed by the nodes behind it', () => {
    assert.match(read('deploy/haproxy/haproxy.cfg'), /^\s+http-request del-header X-Forwarded-For\n\s+http-request del-header Forwarded\n\s+option forwardfor$/m);
    // A whole network would include clients in it.
    const trusted = /^(hops:1|[\d.]+\/32)$/;
    for (const name of ['node1', 'node2', 'node3']) assert.match(services[name].environment.SWITCHBOARD_TRUSTED_PROXIES, trusted, name);
    assert.match(production.one('ConfigMap', 'switchboard').data.SWITCHBOARD_TRUSTED_PROXIES, trusted);
    // HAProxy's ingress controller sends the header unless it is disabled.
    assert.notEqual(production.one('Ingress', 'switchboard').metadata.annotations?.['haproxy.org/forwarded-for'], 'false');
  });
});
