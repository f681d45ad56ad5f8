// deploy/compose.yaml and the files that it mounts.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import { dashboards, filledIn, panelsOf, queriesOf } from '../support/dashboards.mjs';
import { compose, fromVenv, path, read, succeed, variablesIn, yaml } from '../support/deployment.mjs';
import { privateFolder, runToExit } from '../support/server.mjs';

const { services, networks, volumes, variables, secrets, used } = compose();
const NODES = ['node1', 'node2', 'node3'];
const mountsOf = ({ volumes: all = [] }) => all.map((mount) => mount.split(':'));

test('it is a compose file', async () => {
  await succeed(fromVenv('check-jsonschema'), ['--builtin-schema', 'vendor.compose-spec', path('deploy/compose.yaml')]);
});

test('every variable is in .env.example, with the same default, and the other way round', () => {
  for (const { name, fallback, isNeeded } of used) assert.equal(variables[name], isNeeded ? '' : fallback, name);
  assert.deepEqual(Object.keys(variables).filter((name) => !used.some((one) => one.name === name)), []);
});

test('there is no default for a secret, and none stands on a command line', () => {
  const isSecret = (name) => /SECRET|PASSWORD/.test(name);
  const asked = used.filter(({ name }) => isSecret(name));
  assert.deepEqual([...new Set(asked.map(({ name }) => name))].sort(), Object.keys(variables).filter(isSecret).sort());
  for (const { name, isNeeded, fallback } of asked) assert.ok(isNeeded && fallback.includes('deploy/up.sh'), name);
  for (const [name, { command = [], entrypoint = [] }] of Object.entries(services)) {
    const line = [entrypoint, command].flat().join(' ');
    for (const [secret, value] of Object.entries(secrets).filter(([one]) => isSecret(one))) assert.ok(!line.includes(value), `${name}: ${secret}`);
  }
});

test('the script makes secrets that are good, once, and that are nobody else\'s to read', async (t) => {
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true }));
  const file = join(folder, '.env');
  const make = () => succeed(path('deploy/secrets.sh'), [file]);
  const now = async () => variablesIn(await readFile(file, 'utf8'));
  await make();
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  const made = await now();
  const names = Object.keys(variables).filter((name) => /SECRET|PASSWORD/.test(name));
  assert.equal(names.length, 5);
  for (const name of names) assert.match(made[name], /^[0-9a-f]{64}$/, name);
  assert.equal(new Set(names.map((name) => made[name])).size, names.length);
  assert.deepEqual({ ...made, ...Object.fromEntries(names.map((name) => [name, ''])) }, variables);

  // Existing values stay; placeholders, empty and missing values are generated.
  const lines = (await readFile(file, 'utf8')).replace(/^TURN_HOST=.*$/m, 'TURN_HOST=turn.example.org')
    .replace(/^JWT_SECRET=.*$/m, 'JWT_SECRET=change-me-jwt-32-bytes-or-more-please').replace(/^TURN_SECRET=.*\n/m, '').replace(/^REDIS_PASSWORD=.*$/m, 'REDIS_PASSWORD=');
  await writeFile(file, lines, { mode: 0o644 });
  await chmod(file, 0o644);
  await make();
  const again = await now();
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  assert.deepEqual([again.TURN_HOST, again.POSTGRES_PASSWORD, again.GRAFANA_PASSWORD], ['turn.example.org', made.POSTGRES_PASSWORD, made.GRAFANA_PASSWORD]);
  for (const name of ['JWT_SECRET', 'TURN_SECRET', 'REDIS_PASSWORD']) assert.ok(/^[0-9a-f]{64}$/.test(again[name]) && again[name] !== made[name], name);
  await make();
  assert.deepEqual(await now(), again);
  assert.deepEqual(await readdir(folder), ['.env']);
});

describe('deploy/up.sh', () => {
  /** Runs it in a copy of the folder, with a `docker` that writes down how it was called and knows these volumes. */
  async function start(t, { volumes: known = [], args = [], compose: has = true } = {}) {
    const folder = await privateFolder();
    t.after(() => rm(folder, { recursive: true }));
    for (const file of ['up.sh', 'secrets.sh', '.env.example']) await copyFile(path('deploy', file), join(folder, file));
    const called = join(folder, 'called');
    const docker = `#!/bin/sh
echo "$*" >>${called}
case "$1 $2" in
  "compose version") exit ${has ? 0 : 1} ;;
  "volume inspect") case "$3" in ${['none', ...known].join('|')}) exit 0 ;; *) exit 1 ;; esac ;;
esac
`;
    await mkdir(join(folder, 'bin'));
    await writeFile(join(folder, 'bin/docker'), docker, { mode: 0o755 });
    const env = { ...process.env, PATH: `${folder}/bin:${process.env.PATH}` };
    const up = () => promisify(execFile)(join(folder, 'up.sh'), args, { env }).then(({ stdout }) => ({ code: 0, said: stdout }), ({ code, stderr }) => ({ code, said: stderr }));
    const settings = async () => variablesIn(await readFile(join(folder, '.env'), 'utf8'));
    const calls = async () => (await readFile(called, 'utf8')).trim().split('\n');
    return { up, settings, calls, folder };
  }

  test('makes secrets and starts everything; the next time it keeps them', async (t) => {
    const { up, settings, calls, folder } = await start(t, { args: ['--detach'], volumes: [] });
    const { code, said } = await up();
    assert.equal(code, 0, said);
    const made = await settings();
    assert.match(made.JWT_SECRET, /^[0-9a-f]{64}$/);
    assert.equal((await calls()).at(-1), `compose -f ${folder}/compose.yaml up --build --wait --detach`);
    for (const secret of Object.values(made).filter((value) => /^[0-9a-f]{64}$/.test(value))) {
      assert.ok(!said.includes(secret) && !(await calls()).join().includes(secret), 'no secret is printed or on a command line');
    }
    await up();
    assert.deepEqual(await settings(), made);
  });

  test('makes no new password for a Postgres that has one', async (t) => {
    const { up, calls, folder } = await start(t, { volumes: ['switchboard_history'] });
    const { code, said } = await up();
    assert.deepEqual([code, existsSync(join(folder, '.env'))], [1, false]);
    assert.match(said, /restore the file/);
    assert.ok(!(await calls()).some((call) => call.includes(' up')));
    // It is the name that compose gives the volume of `postgres`.
    assert.match(read('deploy/compose.yaml'), /^name: switchboard$/m);
    assert.ok('history' in volumes && services.postgres.volumes[0].startsWith('history:'));
  });

  test('says what is missing', async (t) => {
    const { up } = await start(t, { compose: false });
    const { code, said } = await up();
    assert.equal(code, 1);
    assert.match(said, /Compose/);
  });
});

test('nodes do not take the secrets that earlier examples had', async () => {
  const environment = services.node1.environment;
  for (const [name, value] of [
    ['SWITCHBOARD_JWT_SECRET', 'change-me-jwt-32-bytes-or-more-please'], ['SWITCHBOARD_TURN_SECRET', 'change-me-turn'],
    ['SWITCHBOARD_REDIS_URL', 'redis://:change-me-redis@redis:6379'],
    ['SWITCHBOARD_DATABASE_URL', 'postgres://switchboard:change-me-postgres@postgres:5432/switchboard'],
  ]) {
    const { code, stderr } = await runToExit(['serve'], { env: { ...environment, [name]: value } });
    assert.equal(code, 1);
    assert.match(stderr, /^error: [a-z_]+: this secret stands in an example.*deploy\/secrets\.sh/);
    assert.ok(!stderr.includes('change-me'), stderr);
  }
  // `token` reads only the settings of tokens.
  const known = { SWITCHBOARD_JWT_SECRET: 'change-me-jwt-32-bytes-or-more-please' };
  const token = await runToExit(['token', '--user', 'anna', '--scope', 'admin'], { env: { ...environment, ...known } });
  assert.deepEqual([token.code, token.stdout], [1, '']);
});

test('what it refers to is there', () => {
  for (const [name, service] of Object.entries(services)) {
    for (const [source] of mountsOf(service)) {
      if (source.startsWith('.')) assert.ok(existsSync(path('deploy', source)), `${name}: ${source}`);
      else assert.ok(source in volumes, `${name}: ${source}`);
    }
    for (const network of service.networks) assert.ok(network in networks, `${name}: ${network}`);
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      assert.ok(services[other], `${name}: ${other}`);
      const ends = services[other].restart === 'no';
      assert.equal(condition, ends ? 'service_completed_successfully' : 'service_healthy', `${name} waits for ${other}`);
      const own = services[other].healthcheck?.test ?? (services[other].build && read('deploy/Dockerfile').includes('HEALTHCHECK'));
      assert.ok(ends || own, `${other} says whether it is well`);
    }
  }
});

test('nodes start after the migration, and the balancer after them', () => {
  for (const name of NODES) assert.deepEqual(Object.keys(services[name].depends_on).sort(), ['migrate', 'postgres', 'redis']);
  assert.deepEqual(Object.keys(services.balancer.depends_on), NODES);
  assert.deepEqual(services.migrate.command[0], 'migrate');
});

test('the balancer is told all that its file asks for', () => {
  const asked = [...read('deploy/haproxy/haproxy.cfg').matchAll(/presetenv (\S+)|defined\((\S+)\)/g)].map(([, preset, defined]) => preset ?? defined);
  assert.ok(asked.length > 4);
  for (const name of asked) assert.ok(name in services.balancer.environment, name);
  assert.deepEqual(NODES.map((_, index) => services.balancer.environment[`NODE_${index + 1}`].split(':')[0]), NODES);
});

test('nothing is published beyond loopback that is not for clients, and no store can be reached from outside', () => {
  assert.equal(variables.PUBLISH, '127.0.0.1');
  for (const [name, { ports = [], networks: joined }] of Object.entries(services)) {
    for (const port of ports) assert.match(port, /^127\.0\.0\.1:/, name);
    if (['redis', 'postgres', ...NODES].includes(name)) assert.deepEqual(joined, ['back'], name);
  }
  assert.equal(networks.back.internal, true);
  assert.deepEqual(services.coturn.networks, ['turn'], 'what clients have it send reaches nothing else');
});

test('coturn relays on the ports that are published, and shares its secret with the nodes', () => {
  const settings = read('deploy/coturn/turnserver.conf');
  const [, least] = /^min-port=(\d+)$/m.exec(settings);
  const [, most] = /^max-port=(\d+)$/m.exec(settings);
  assert.ok(services.coturn.ports.includes(`127.0.0.1:${least}-${most}:${least}-${most}/udp`));
  const [, port] = /^listening-port=(\d+)$/m.exec(settings);
  for (const url of services.node1.environment.SWITCHBOARD_TURN_URLS.split(',')) assert.match(url, new RegExp(`:${port}\\?`));
  assert.equal(services.coturn.environment.TURN_SECRET, services.node1.environment.SWITCHBOARD_TURN_SECRET);
});

test('traces go where the collector listens', () => {
  const { receivers, processors, exporters, service } = yaml('deploy/otel/collector.yaml');
  const port = receivers.otlp.protocols.http.endpoint.split(':')[1];
  assert.equal(services.node1.environment.OTEL_EXPORTER_OTLP_ENDPOINT, `http://otel-collector:${port}`);
  for (const pipeline of Object.values(service.pipelines)) {
    const named = [[pipeline.receivers, receivers], [pipeline.processors, processors], [pipeline.exporters, exporters]];
    for (const [names, all] of named) for (const name of names) assert.ok(name in all, name);
  }
});

test('Grafana finds its Prometheus and its dashboards, and every query can be read', async (t) => {
  const { datasources: [source] } = yaml('deploy/grafana/provisioning/datasources/prometheus.yaml');
  assert.equal(source.url, 'http://prometheus:9090');
  const { providers: [provider] } = yaml('deploy/grafana/provisioning/dashboards/switchboard.yaml');
  assert.ok(mountsOf(services.grafana).some(([from, to]) => from === './grafana/dashboards' && to === provider.options.path));
  assert.ok(existsSync(services.grafana.environment.GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH.replace(provider.options.path, path('deploy/grafana/dashboards'))));
  const shipped = dashboards();
  assert.ok(shipped.length > 0);
  assert.equal(new Set(shipped.map(({ uid }) => uid)).size, shipped.length);
  const panels = shipped.flatMap(panelsOf);
  const rules = queriesOf(panels).map((query, index) => ({ record: `query_${index}`, expr: filledIn(query, '5m') }));
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, 'queries.json'), JSON.stringify({ groups: [{ name: 'dashboards', rules }] }));
  await succeed('promtool', ['check', 'rules', '--lint=none', join(folder, 'queries.json')]);
});

test('Prometheus can read its settings', async () => {
  await succeed('promtool', ['check', 'config', path('deploy/prometheus/prometheus.yml')]);
});
