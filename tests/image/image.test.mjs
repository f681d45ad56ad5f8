// The image, run by docker or podman as production runs it, after `make image-check` has built it. Containers have the
// host's network: Redis and Postgres are those of the other tests.

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { chmod, copyFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import { activeCall, assertCallsWork } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { freePort, startRedis } from '../support/cluster.mjs';
import { dockerfile, read } from '../support/deployment.mjs';
import { row } from '../support/http.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { folderFor } from '../support/prometheus.mjs';

const works = (program) => spawnSync(program, ['info'], { stdio: 'ignore' }).status === 0;
/** A program and its options, such as `podman --runtime runc`. */
const [ENGINE, ...OPTIONS] = process.env.ENGINE?.split(' ') ?? [works('docker') ? 'docker' : 'podman'];
const [, VERSION] = /^version = "(.+)"$/m.exec(read('Cargo.toml'));
const HERE = { x64: 'amd64', arm64: 'arm64' }[process.arch];
const { ARCH = HERE } = process.env;
/** As scripts/image.sh names it. */
const IMAGE = `${ENGINE === 'podman' ? 'localhost/' : ''}switchboard:${VERSION}${ARCH === HERE ? '' : `-${ARCH}`}`;
/** An emulated processor is slow. */
const START_MS = 60_000;

const run = promisify(execFile);
const engine = (...args) => run(ENGINE, [...OPTIONS, ...args], { maxBuffer: 1 << 26 }).then(({ stdout }) => stdout.trim());
const exitOf = (...args) => run(ENGINE, [...OPTIONS, ...args]).then(({ stdout }) => ({ code: 0, said: stdout }), ({ code, stdout, stderr }) => ({ code, said: stdout + stderr }));

const [CONFIG] = JSON.parse(await engine('image', 'inspect', IMAGE));

/** As `k8s/` runs it: nothing can be written, there are no capabilities, and none can be gained. */
const HARDENED = [
  '--read-only', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges',
  // The tests ask for health themselves. An engine's default limits may be above those of this machine.
  '--no-healthcheck', '--ulimit', 'nofile=4096:4096', '--ulimit', 'nproc=4096:4096',
];

/** A container that is removed with the test. `name` is its name, `url` where clients reach it. */
async function start(t, env, options = []) {
  const name = `switchboard-test-${randomUUID()}`;
  const [clients, admin] = [await freePort(), await freePort()];
  const settings = { SWITCHBOARD_LISTEN: `127.0.0.1:${clients}`, SWITCHBOARD_ADMIN_LISTEN: `127.0.0.1:${admin}`, ...env };
  const set = Object.entries(settings).flatMap(([key, value]) => ['--env', `${key}=${value}`]);
  t.after(() => exitOf('rm', '--force', '--volumes', name));
  await engine('run', '--detach', '--name', name, '--network', 'host', ...HARDENED, ...options, ...set, IMAGE);
  const logs = async () => (await exitOf('logs', name)).said;
  const container = {
    name, logs, url: `http://127.0.0.1:${clients}`, port: clients, adminUrl: `http://127.0.0.1:${admin}`,
    /** The health check, as the engine runs it. */
    health: () => exitOf('exec', name, ...dockerfile().healthCheck),
    state: async (field) => engine('inspect', '--format', `{{.State.${field}}}`, name),
  };
  container.ready = () => eventually(async () => (await container.health()).code === 0, 'the container is healthy', START_MS)
    .catch(async (error) => assert.fail(`${error.message}\n${await logs()}`));
  return container;
}

/** Every file, with its rights and owner, as `tar` lists it. */
async function files() {
  const listed = await exported('-tv', '--numeric-owner');
  return listed.trim().split('\n').map((line) => {
    const [rights, owner, size, , , name] = line.split(/\s+/);
    return { rights, owner, size: Number(size), name: name.replace(/^\.?\//, '') };
  });
}

/** A file of the image. */
const contentOf = (name) => exported('-xO', name);

/** The output of `tar` with these options, which reads the whole image. */
async function exported(...options) {
  const id = await engine('create', IMAGE);
  const folder = await mkdtemp(join(tmpdir(), 'switchboard-test-'));
  try {
    await engine('export', '--output', join(folder, 'image.tar'), id);
    return (await run('tar', ['-f', join(folder, 'image.tar'), ...options], { maxBuffer: 1 << 26 })).stdout;
  } finally {
    await engine('rm', id);
    await rm(folder, { recursive: true });
  }
}

describe('what is in it', () => {
  test('architecture, labels, user, ports, health check', () => {
    const { Config: config, Architecture } = CONFIG;
    assert.equal(Architecture, ARCH);
    assert.equal(config.User, '65532:65532');
    assert.deepEqual(Object.keys(config.ExposedPorts).sort(), ['3000/tcp', '9300/tcp']);
    const check = config.Healthcheck ?? CONFIG.HealthCheck ?? CONFIG.Healthcheck;
    assert.deepEqual(check.Test, ['CMD', ...dockerfile().healthCheck]);
    const label = (name) => config.Labels[`org.opencontainers.image.${name}`];
    assert.deepEqual([label('title'), label('version'), label('licenses')], ['switchboard', VERSION, 'MIT']);
    assert.match(label('revision'), /^([0-9a-f]{40}|unknown)$/);
  });

  test('the binary, three libraries, certificates, and no program beside', async (t) => {
    // An engine adds empty files of its own when it makes a container.
    const all = (await files()).filter(({ name, size }) => !/^(dev|proc|sys|run|etc\/(hosts|hostname|resolv\.conf|mtab)|\.dockerenv)/.test(name) || size > 0);
    const programs = all.filter(({ rights }) => /^-..[xs]|^-.{5}[xs]|^-.{8}[xt]/.test(rights)).map(({ name }) => name);
    assert.deepEqual(programs.filter((name) => !/^lib\/(ld-linux-[^/]+\.so\.\d|libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1)$/.test(name)), ['usr/local/bin/switchboard']);
    assert.deepEqual(all.filter(({ rights }) => /^.{3}[sS]|^.{6}[sS]/.test(rights)), [], 'nothing changes the user');
    assert.deepEqual(all.filter(({ rights }) => /^[^l].{7}w/.test(rights)), [], 'nobody else may write');
    const owned = all.filter(({ owner }) => owner !== '0/0').map(({ name }) => name);
    assert.deepEqual(owned, ['var/lib/switchboard/']);
    const mib = all.reduce((sum, { size }) => sum + size, 0) / (1024 * 1024);
    t.diagnostic(`${mib.toFixed(1)} MiB in ${all.length} files`);
    assert.ok(mib < 40, `${mib} MiB`);
  });

  test('a list of its crates, and the packages of its libraries', async () => {
    const { bomFormat, metadata, components } = JSON.parse(await contentOf('usr/share/sbom/switchboard.cdx.json'));
    assert.equal(bomFormat, 'CycloneDX');
    assert.deepEqual([metadata.component.name, metadata.component.version], ['switchboard', VERSION]);
    const locked = new Set([...read('Cargo.lock').matchAll(/^name = "(.+)"\nversion = "(.+)"$/gm)].map(([, name, version]) => `${name}@${version}`));
    const listed = components.map(({ name, version }) => `${name}@${version}`);
    assert.deepEqual(listed.filter((one) => !locked.has(one)), []);
    const names = new Set(components.map(({ name }) => name));
    const [, direct] = /^\[dependencies\]\n(.*?)^\[/ms.exec(read('Cargo.toml'));
    for (const [, name] of direct.matchAll(/^([\w-]+) = /gm)) assert.ok(names.has(name), name);
    for (const name of ['libc6', 'libgcc-s1']) assert.match(await contentOf(`var/lib/dpkg/status.d/${name}`), new RegExp(`^Package: ${name}$`, 'm'));
  });

  test('the binary of this version', async () => {
    assert.equal(await engine('run', '--rm', '--network', 'none', ...HARDENED, IMAGE, '--version'), `switchboard ${VERSION}`);
  });
});

describe('what it does', () => {
  test('refuses to start without a mode', async () => {
    const { code, said } = await exitOf('run', '--rm', '--network', 'none', ...HARDENED, IMAGE);
    assert.equal(code, 1, said);
    assert.match(said, /SWITCHBOARD_AUTH/);
  });

  test('migrates, waits for Redis, carries calls without rights, and stops in time', async (t) => {
    const postgres = await startPostgres({ schema: false });
    t.after(() => postgres.stop());
    // By name: the image can look up names.
    const byName = { SWITCHBOARD_DATABASE_URL: postgres.url.replace('127.0.0.1', 'localhost') };
    const migrated = await exitOf('run', '--rm', '--network', 'host', ...HARDENED, '--env', `SWITCHBOARD_DATABASE_URL=${byName.SWITCHBOARD_DATABASE_URL}`, IMAGE, 'migrate', '--listen', '127.0.0.1:3000');
    assert.equal(migrated.code, 0, migrated.said);
    // A private authority beside those of the image, mounted as the component private-ca does.
    const authorities = await folderFor(t);
    const redisPort = await freePort();
    const redis = await startRedis({ port: redisPort, tls: true });
    t.after(() => redis.stop());
    await copyFile(redis.authority, join(authorities, 'ca.pem'));
    for (const [path, mode] of [[authorities, 0o755], [join(authorities, 'ca.pem'), 0o644]]) await chmod(path, mode);
    await redis.halt();
    const node = await start(t, {
      ...byName, SWITCHBOARD_AUTH: 'open', SWITCHBOARD_REDIS_URL: redis.url, SSL_CERT_DIR: '/etc/ssl/certs:/etc/switchboard/ca',
    }, ['--volume', `${authorities}:/etc/switchboard/ca:ro`]);
    await eventually(async () => (await node.health()).said.includes('503'), 'it waits for Redis', START_MS).catch(async (error) => assert.fail(`${error.message}\n${await node.logs()}`));
    assert.equal((await node.health()).code, 1);
    await redis.start();
    await node.ready();

    const status = await readFile(`/proc/${await node.state('Pid')}/status`, 'utf8');
    const field = (name) => new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status)[1].split(/\s+/);
    assert.deepEqual(field('Uid'), ['65532', '65532', '65532', '65532']);
    assert.deepEqual([field('CapEff'), field('CapPrm'), field('CapBnd')], [['0000000000000000'], ['0000000000000000'], ['0000000000000000']]);
    assert.deepEqual(field('NoNewPrivs'), ['1']);

    // By its name alone, as in the guides.
    assert.equal((await exitOf('exec', node.name, 'switchboard', '--version')).code, 0);
    assert.match(await (await fetch(node.url)).text(), /<html/);
    await assertCallsWork(t, node);
    await engine('stop', '--time', '40', node.name);
    assert.equal(await node.state('ExitCode'), '0', await node.logs());
  });

  test('keeps its history in a volume, with SQLite', async (t) => {
    const volume = `switchboard-test-${randomUUID()}`;
    t.after(() => exitOf('volume', 'rm', '--force', volume));
    const withVolume = async () => {
      const node = await start(t, { SWITCHBOARD_AUTH: 'open' }, ['--volume', `${volume}:/var/lib/switchboard`]);
      await node.ready();
      return node;
    };
    const first = await withVolume();
    const { caller, callee, callId } = await activeCall(t, first);
    await caller.ok('call:end', { toUserId: callee.userId });
    await row(first, caller.userId, callId);
    await engine('stop', '--time', '40', first.name);
    assert.equal(await first.state('ExitCode'), '0', await first.logs());
    await row(await withVolume(), caller.userId, callId);
  });
});
