// k8s/: the objects that kustomize renders are valid, have no dangling references, and may run in a restricted
// namespace.

import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { environmentOf, filesUnder, fromVenv, LAYERS, objectsIn, podsOf, read, render, rendered, renderWith, succeed, yaml } from '../support/deployment.mjs';
import { privateFolder } from '../support/server.mjs';
import { complaintsOf } from '../support/types.mjs';

/** The oldest and the newest supported Kubernetes. */
const VERSIONS = ['1.31', '1.37'];
const CUSTOM = {
  'monitoring.coreos.com/v1': '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1',
  'gateway.networking.k8s.io/v1': '@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1',
};

/** The Secret of production, made by the command in docs/guides/kubernetes.md. */
const [, COMMAND] = /kubectl[^`]*? create secret generic switchboard([^`]*)```/.exec(read('docs/guides/kubernetes.md'));
const SECRET = Object.fromEntries([...COMMAND.matchAll(/^\s*([a-z][a-z-]*)=/gm)].map(([, key]) => [key, 'said by hand']));

/** Errors of the schema's TypeScript type: the schema itself ignores unknown fields. */
const strangersIn = (object) =>
  complaintsOf(`import type { I${object.kind} } from '${CUSTOM[object.apiVersion]}/${object.kind}';\nexport const it: I${object.kind} = ${JSON.stringify(object)};`);

async function assertValid(t, text) {
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, 'all.yaml');
  await writeFile(file, text);
  for (const version of VERSIONS) {
    const said = await succeed(fromVenv('kubernetes-validate'), ['-k', version, '--strict', file]);
    const unknown = [...said.matchAll(/WARN .* kind (\S+) with api version (\S+)/g)].map(([, , api]) => api);
    assert.deepEqual(unknown.filter((api) => !CUSTOM[api]), [], said);
  }
  for (const object of objectsIn(text).all.filter(({ apiVersion }) => CUSTOM[apiVersion])) {
    const module = await import(`${CUSTOM[object.apiVersion]}/${object.kind}`);
    new module[object.kind](object).validate();
    assert.deepEqual(strangersIn(object), []);
  }
}

for (const layer of LAYERS) {
  describe(`k8s/${layer}`, () => {
    const objects = rendered(layer);
    const pods = podsOf(objects);

    test('is valid', (t) => assertValid(t, render(layer)));

    test('refers only to what is there', () => {
      const ports = ({ pod }) => pod.containers.flatMap((container) => container.ports ?? []);
      const chosenBy = (selector) => pods.filter(({ labels }) => Object.entries(selector).every(([key, value]) => labels[key] === value));
      for (const { pod } of pods) {
        for (const container of pod.containers) environmentOf(container, objects, { switchboard: SECRET });
        if (pod.serviceAccountName) objects.one('ServiceAccount', pod.serviceAccountName);
      }
      for (const { metadata, spec } of objects.of('Service')) {
        const [pod, ...others] = chosenBy(spec.selector);
        assert.ok(pod && others.length === 0, `${metadata.name} chooses the pods of one`);
        for (const { targetPort } of spec.ports) assert.ok(ports(pod).some(({ name }) => name === targetPort), `${metadata.name} ${targetPort}`);
      }
      for (const { metadata, spec } of objects.of('PodDisruptionBudget')) assert.equal(chosenBy(spec.selector.matchLabels).length, 1, metadata.name);
      for (const { spec } of objects.of('HorizontalPodAutoscaler')) objects.one(spec.scaleTargetRef.kind, spec.scaleTargetRef.name);
      for (const { spec } of objects.of('Ingress')) {
        for (const { backend } of spec.rules.flatMap(({ http }) => http.paths)) {
          const service = objects.one('Service', backend.service.name);
          assert.ok(service.spec.ports.some(({ name }) => name === backend.service.port.name));
        }
      }
      for (const { spec } of objects.of('ServiceMonitor')) {
        const wanted = Object.entries(spec.selector.matchLabels);
        const services = objects.of('Service').filter(({ metadata }) => wanted.every(([key, value]) => metadata.labels[key] === value));
        assert.deepEqual(services.map(({ metadata }) => metadata.name), ['switchboard-admin']);
        for (const { port } of spec.endpoints) assert.ok(services[0].spec.ports.some(({ name }) => name === port));
      }
      const chosenByPolicies = objects.of('NetworkPolicy').map(({ spec }) => chosenBy(spec.podSelector.matchLabels ?? {}).length);
      assert.ok(chosenByPolicies.every((count) => count > 0));
    });

    test('its pods have no rights that they do not need', () => {
      for (const { name, pod } of pods) {
        assert.equal(pod.automountServiceAccountToken, false, name);
        assert.equal(pod.securityContext.runAsNonRoot, true, name);
        assert.ok(pod.securityContext.runAsUser > 0, name);
        assert.equal(pod.securityContext.seccompProfile.type, 'RuntimeDefault', name);
        for (const { securityContext, resources } of pod.containers) {
          assert.deepEqual(securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } }, name);
          assert.ok(resources.requests.cpu && resources.requests.memory && resources.limits.memory, name);
        }
      }
      for (const { metadata } of objects.of('Namespace')) assert.equal(metadata.labels['pod-security.kubernetes.io/enforce'], 'restricted');
    });
  });
}

test('nothing from outside leads to nodes that believe whoever connects', () => {
  const dev = rendered('overlays/dev');
  assert.equal(dev.one('ConfigMap', 'switchboard').data.SWITCHBOARD_AUTH, 'open');
  assert.deepEqual([...dev.of('Ingress'), ...dev.of('HTTPRoute')], []);
  for (const { metadata, spec } of dev.of('Service')) assert.ok([undefined, 'ClusterIP'].includes(spec.type), metadata.name);
  assert.deepEqual(dev.one('NetworkPolicy', 'switchboard-clients').spec.ingress[0].from, [{ podSelector: {} }]);
  assert.equal(rendered('overlays/production').one('ConfigMap', 'switchboard').data.SWITCHBOARD_AUTH, 'jwt');
});

test('nodes are replaced, spread and taken away one at a time', () => {
  const production = rendered('overlays/production');
  const { spec } = production.one('Deployment', 'switchboard');
  assert.deepEqual(spec.strategy.rollingUpdate, { maxSurge: 1, maxUnavailable: 0 });
  assert.deepEqual(spec.template.spec.topologySpreadConstraints.map(({ topologyKey }) => topologyKey), ['kubernetes.io/hostname', 'topology.kubernetes.io/zone']);
  assert.equal(spec.replicas, undefined, 'the autoscaler alone says how many');
  const scaler = production.one('HorizontalPodAutoscaler', 'switchboard').spec;
  assert.deepEqual(scaler.behavior.scaleDown.policies.map(({ type, value }) => [type, value]), [['Pods', 1]]);
  assert.equal(scaler.metrics[0].pods.metric.name, 'switchboard_sockets');
  assert.equal(production.one('PodDisruptionBudget', 'switchboard').spec.maxUnavailable, 1);
});

test('polling clients are kept on their node, with the cookie that the tests use', () => {
  const [, cookie] = /^\s*cookie (\S+) insert/m.exec(read('deploy/haproxy/haproxy.cfg'));
  const { annotations } = rendered('overlays/production').one('Service', 'switchboard').metadata;
  assert.equal(annotations['haproxy.org/cookie-persistence'], cookie);
  const seconds = Number(/^(\d+)s$/.exec(annotations['haproxy.org/timeout-server'])[1]);
  assert.ok(seconds > 25, 'a polling request may wait for 25 s');
});

/** Each choice of components that the guide names. */
const CHOICES = {
  'nothing optional': () => ['production'],
  'Gateway API': () => ['production', 'http-route'],
  'a private authority': (names) => [...names, 'private-ca'],
  'a shared secret for tokens': (names) => [...names, 'jwt-secret'],
};

describe('components of production', () => {
  for (const [name, change] of Object.entries(CHOICES)) {
    test(`${name}: valid, and nothing dangles`, async (t) => {
      const text = renderWith(change);
      await assertValid(t, text);
      const objects = objectsIn(text);
      for (const { pod } of podsOf(objects)) {
        const [container] = pod.containers;
        environmentOf(container, objects, { switchboard: { ...SECRET, 'jwt-secret': 'said by hand' } });
        assert.deepEqual((container.volumeMounts ?? []).map((mount) => mount.name), (pod.volumes ?? []).map((volume) => volume.name));
        assert.equal(container.securityContext.readOnlyRootFilesystem, true);
      }
    });
  }

  test('each is a choice of production or of a test', () => {
    const all = [...new Set(filesUnder('k8s/components').map((file) => basename(dirname(file))))];
    const chosen = Object.values(CHOICES).flatMap((change) => change(yaml('k8s/overlays/production/kustomization.yaml').components.map((file) => basename(file))));
    assert.deepEqual(all.filter((name) => !chosen.includes(name)), []);
  });

  test('the migration and the nodes trust one set of authorities, that of the image among them', () => {
    const { all } = objectsIn(renderWith((names) => [...names, 'private-ca']));
    const trusted = podsOf({ all }).map(({ pod }) => pod.containers[0].env.find(({ name }) => name === 'SSL_CERT_DIR').value);
    assert.equal(trusted.length, 2);
    assert.equal(new Set(trusted).size, 1);
    const [images, mounted] = trusted[0].split(':');
    assert.ok(read('deploy/Dockerfile').includes(`/image${images}`));
    for (const { pod } of podsOf({ all })) assert.equal(pod.containers[0].volumeMounts[0].mountPath, mounted);
  });
});

test('an overlay pins the image by its digest, for nodes and migration', () => {
  const digest = `sha256:${'0'.repeat(64)}`;
  const text = renderWith((names) => names, { images: [{ name: 'switchboard', newName: 'registry.example.com/switchboard', digest }] });
  const images = podsOf(objectsIn(text)).flatMap(({ pod }) => pod.containers.map(({ image }) => image));
  assert.deepEqual(images, Array(2).fill(`registry.example.com/switchboard@${digest}`));
});

test('names are looked up at kube-dns and at NodeLocal DNSCache', () => {
  for (const layer of LAYERS) {
    const { egress } = rendered(layer).one('NetworkPolicy', 'switchboard').spec;
    const dns = egress.filter(({ ports }) => ports.some(({ port, protocol }) => port === 53 && protocol === 'UDP'));
    assert.deepEqual(dns.flatMap(({ to }) => to.map(({ ipBlock }) => ipBlock?.cidr)), [undefined, '169.254.20.10/32'], layer);
  }
});

test('every file in k8s/ is used', () => {
  for (const file of filesUnder('k8s').filter((name) => basename(name) !== 'kustomization.yaml')) {
    assert.ok(read(dirname(file), 'kustomization.yaml').includes(basename(file)), file);
  }
});
