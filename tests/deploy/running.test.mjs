// The shipped settings, used by their programs: HAProxy, Prometheus and coturn of Debian.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { chown, copyFile, readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertCallsWork } from '../support/calls.mjs';
import { makeCertificate } from '../support/certificate.mjs';
import { eventually } from '../support/check.mjs';
import { freePort, startCluster, startRedis } from '../support/cluster.mjs';
import { compose, objectsIn, path, renderWith, succeed } from '../support/deployment.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { folderFor, running, startPrometheus } from '../support/prometheus.mjs';
import { runToExit } from '../support/server.mjs';

const { services } = compose();
const HAPROXY = path('deploy/haproxy/haproxy.cfg');

test("HAProxy takes its settings, with and without a name server's address", async () => {
  const containers = { BALANCER_DNS: '127.0.0.11:53', NODE_1: 'node1:3000', NODE_2: 'node2:3000', NODE_3: 'node3:3000' };
  for (const env of [{}, containers]) await succeed('haproxy', ['-c', '-f', HAPROXY], { env: { ...process.env, ...env } });
});

test('HAProxy starts before its nodes have addresses, and finds one that came back with another', async (t) => {
  const address = { node1: null };
  const dns = await startDns(t, (name) => address[name]);
  const port = await freePort();
  const first = await startStandIn(t, '127.0.0.2');
  const second = await startStandIn(t, '127.0.0.3', first.port);
  const nodes = ['node1', 'node2', 'node3'].flatMap((name, index) => [
    [`NODE_${index + 1}`, `${name}:${first.port}`],
    [`NODE_${index + 1}_ADMIN`, `${first.port}`],
  ]);
  const env = { ...process.env, ...Object.fromEntries(nodes), BALANCER_LISTEN: `127.0.0.1:${port}`, BALANCER_DNS: `127.0.0.1:${dns}` };
  const haproxy = running(t, 'haproxy', ['-db', '-f', HAPROXY], { env });
  const ask = async () => (await fetch(`http://127.0.0.1:${port}/`).catch(() => null))?.text();
  await eventually(async () => (await ask())?.includes('503'), 'it serves, and there is no node');
  address.node1 = '127.0.0.2';
  await eventually(async () => (await ask()) === '127.0.0.2', `the first address is used\n${haproxy.output}`);
  address.node1 = '127.0.0.3';
  await first.stop();
  await eventually(async () => (await ask()) === '127.0.0.3', 'the second address is used');
  assert.equal(await ask(), '127.0.0.3', second.address);
});

test('Prometheus scrapes three nodes', async (t) => {
  const cluster = await startCluster(3);
  t.after(() => cluster.stop());
  const targets = cluster.nodes.map((node) => new URL(node.adminUrl).host);
  const asked = await scraped(t, targets);
  assert.deepEqual(asked, targets.map((target) => [target, '1']).sort());
});

test('Prometheus scrapes whatever the file of targets names', async (t) => {
  const standIn = await startStandIn(t, '127.0.0.1');
  const there = `127.0.0.1:${standIn.port}`;
  const nobody = `127.0.0.1:${await freePort()}`;
  assert.deepEqual(await scraped(t, [there, nobody]), [[there, '1'], [nobody, '0']].sort());
});

/** The value of `up` for each target, in a Prometheus with the shipped settings. */
async function scraped(t, targets) {
  const prometheus = await startPrometheus(t, [{ targets }]);
  const series = async () => {
    const all = await prometheus.query('up{job="switchboard"}');
    return all.length === targets.length && all;
  };
  const all = await eventually(series, `each was asked once\n${prometheus.run.output}`, 30_000);
  return all.map(({ metric, value }) => [metric.instance, `${value}`]).sort();
}

test('coturn relays for those who know the secret, and not to where it must not', async (t) => {
  const folder = await folderFor(t);
  const port = await freePort();
  const relays = 20_000 + 2 * Math.floor(Math.random() * 5_000);
  // Started as compose does, with this machine's files and a few options for a single machine.
  const [shell, ...rest] = services.coturn.entrypoint.map((text) =>
    text.replaceAll('/etc/coturn/turnserver.conf', path('deploy/coturn/turnserver.conf')).replaceAll('/var/tmp', folder),
  );
  const secret = 'the $secret "of" `these`';
  const args = ['--allowed-peer-ip=127.0.0.1'];
  const here = ['--listening-ip=127.0.0.1', '--relay-ip=127.0.0.1', `--listening-port=${port}`, `--min-port=${relays}`, `--max-port=${relays + 60}`];
  const files = [`--pidfile=${folder}/pid`, `--userdb=${folder}/db`, '--allow-loopback-peers'];
  const env = { ...process.env, TURN_SECRET: secret };
  const coturn = running(t, shell, [...rest, ...args, ...here, ...files], { cwd: folder, env });
  const lives = () => run('turnutils_stunclient', ['-p', `${port}`, '127.0.0.1'], 1_000);
  await eventually(async () => (await lives()).ok, `it answers\n${coturn.output}`);
  const line = await readFile(`/proc/${coturn.child.pid}/cmdline`, 'utf8');
  assert.ok(line.startsWith('turnserver') && !line.includes(secret), line);

  const user = `${Math.floor(Date.now() / 1_000) + 60}:anna`;
  const password = (key) => createHmac('sha1', key).update(user).digest('base64');
  const relay = (key, ...to) =>
    run('turnutils_uclient', ['-c', '-n', '2', '-m', '1', '-u', user, '-w', password(key), '-p', `${port}`, ...to, '127.0.0.1'], 8_000);
  const toEachOther = ['-y'];
  const welcome = await relay(secret, ...toEachOther);
  assert.match(welcome.output, /tot_recv_msgs=[1-9]/, `${welcome.output}\n${coturn.output}`);
  const stranger = await relay('another one', ...toEachOther);
  assert.match(stranger.output, /Cannot complete Allocation/, stranger.output);
  // A service in a network that the settings forbid, which would reply.
  const inside = createSocket('udp4').on('message', (data, { port: to, address }) => inside.send(data, to, address));
  t.after(() => inside.close());
  inside.bind(0, '127.0.0.9');
  await once(inside, 'listening');
  const refused = await relay(secret, '-e', '127.0.0.9', '-r', `${inside.address().port}`);
  assert.doesNotMatch(refused.output, /tot_recv_msgs=[1-9]/, refused.output);
  assert.match(refused.output, /403/, refused.output);
});

test('Redis starts as compose starts it: with its password, which no command line shows', async (t) => {
  const folder = await folderFor(t);
  const port = await freePort();
  const password = 'a1b2c3';
  const [shell, flag, script] = services.redis.command;
  const here = script.replace('redis-server -', `redis-server - --port ${port} --bind 127.0.0.1`);
  const redis = running(t, shell, [flag, here], { cwd: folder, env: { ...process.env, REDIS_PASSWORD: password } });
  const ask = (...args) => run('redis-cli', ['-p', `${port}`, '--no-auth-warning', ...args], 2_000);
  await eventually(async () => /NOAUTH/.test((await ask('ping')).output), `it wants a password\n${redis.output}`);
  assert.match((await ask('-a', password, 'ping')).output, /PONG/);
  assert.match((await ask('-a', password, 'config', 'get', 'maxmemory-policy')).output, /noeviction/);
  assert.match((await ask('-a', password, 'config', 'get', 'save')).output, /^save\n\n*$/);
  const line = await readFile(`/proc/${redis.child.pid}/cmdline`, 'utf8');
  assert.ok(line.startsWith('redis-server') && !line.includes(password), line);
});

test('nodes and the migration trust the authorities that the component private-ca mounts, for Redis and Postgres', async (t) => {
  const folder = await folderFor(t);
  const { authority, certificate, key } = await makeCertificate(folder);
  // Postgres, which may run as nobody, reads only a key of its own.
  if (process.getuid() === 0) for (const file of [folder, key]) await chown(file, 65_534, 65_534);
  const postgres = await startPostgres({ schema: false, settings: { ssl: 'on', ssl_cert_file: certificate, ssl_key_file: key } });
  t.after(() => postgres.stop());

  const mounted = await folderFor(t);
  await copyFile(authority, join(mounted, 'postgres.pem'));
  const overlay = objectsIn(renderWith((names) => [...names, 'private-ca']));
  const [{ env }] = overlay.one('Deployment', 'switchboard').spec.template.spec.containers;
  const shipped = env.find(({ name }) => name === 'SSL_CERT_DIR').value;
  const trusting = { SSL_CERT_FILE: undefined, SSL_CERT_DIR: shipped.replace('/etc/switchboard/ca', mounted) };
  assert.notEqual(trusting.SSL_CERT_DIR, shipped);

  const database = `${postgres.url}?sslmode=verify-full`;
  const migrate = (more) => runToExit(['migrate'], { env: { SWITCHBOARD_DATABASE_URL: database, ...more } });
  const refused = await migrate({ SSL_CERT_FILE: undefined, SSL_CERT_DIR: undefined });
  assert.equal(refused.code, 1, refused.stdout);
  assert.match(refused.stderr, /certificate|UnknownIssuer/);
  const migrated = await migrate(trusting);
  assert.equal(migrated.code, 0, migrated.stderr);

  const redis = await startRedis({ tls: true });
  await copyFile(redis.authority, join(mounted, 'redis.pem'));
  const cluster = await startCluster(1, { redis, args: ['--database-url', database], env: trusting });
  t.after(() => cluster.stop());
  await assertCallsWork(t, cluster);
});

/** Runs a program to its end, at most for `timeout`. */
function run(program, args, timeout) {
  return new Promise((resolve) => {
    execFile(program, args, { timeout, killSignal: 'SIGKILL' }, (error, stdout, stderr) => resolve({ ok: error === null, output: stdout + stderr }));
  });
}

/** A healthy service without metrics that replies with its own address. */
async function startStandIn(t, address, port = 0) {
  const server = createServer((request, response) => response.end(request.url === '/metrics' ? '' : address));
  server.listen(port, address);
  await once(server, 'listening');
  const stop = async () => {
    if (!server.listening) return;
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  };
  t.after(stop);
  return { address, port: server.address().port, stop };
}

/** A name server for IPv4 addresses; returns its port. */
async function startDns(t, addressOf) {
  const socket = createSocket('udp4');
  socket.on('message', (query, { port, address: from }) => {
    let end = 12;
    const labels = [];
    for (; query[end] !== 0; end += query[end] + 1) labels.push(query.toString('latin1', end + 1, end + 1 + query[end]));
    const question = query.subarray(12, end + 5);
    const address = query.readUInt16BE(end + 1) === 1 ? addressOf(labels[0]) : null;
    const head = Buffer.alloc(12);
    query.copy(head, 0, 0, 2);
    head.writeUInt16BE(address ? 0x8180 : 0x8183, 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(address ? 1 : 0, 6);
    const answer = address ? Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, ...address.split('.').map(Number)]) : Buffer.alloc(0);
    socket.send(Buffer.concat([head, question, answer]), port, from);
  });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  t.after(() => socket.close());
  return socket.address().port;
}
