// Start, invalid settings, and stop.

import assert from 'node:assert/strict';
import { access, mkdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join as joinPath } from 'node:path';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import { activeCall } from '../support/calls.mjs';
import { launch, privateFolder, runToExit, startServer } from '../support/server.mjs';
import { rawSocket, tcp } from '../support/raw.mjs';
import { within } from '../support/check.mjs';

async function folder(t) {
  const dir = await privateFolder();
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** The server refuses to start with one sentence that names the problem, and exit code 1. */
async function assertRefusesToStart(args, { env, dir, mentions }) {
  const { code, signal, stdout, stderr } = await runToExit(args, { env, dir });
  const said = `stderr: ${stderr}\nstdout: ${stdout}`;
  assert.deepEqual({ code, signal }, { code: 1, signal: null }, said);
  assert.equal(stdout, '', said);
  const lines = stderr.trimEnd().split('\n');
  assert.equal(lines.length, 1, `one line, please: ${said}`);
  assert.match(lines[0], /^error: \S/, said);
  assert.doesNotMatch(stderr, /panicked|backtrace|\.rs:\d|Error \{|Os \{|Some\(/i, said);
  for (const word of [mentions].flat()) assert.ok(stderr.toLowerCase().includes(word.toLowerCase()), `should mention ${word}: ${said}`);
}

const FREE = ['--listen', '127.0.0.1:0'];

describe('a start that cannot be', { concurrency: true }, () => {
  test('on a taken port', async (t) => {
    const other = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    t.after(() => other.close());
    const address = `127.0.0.1:${other.address().port}`;
    await assertRefusesToStart(['--listen', address], { mentions: [address, 'SWITCHBOARD_LISTEN', `(process ${process.pid}) listens there`] });
  });

  test('with a taken port for health and metrics, as a second node on a machine would: the setting is named', async (t) => {
    const other = await startServer();
    t.after(() => other.stop());
    const address = new URL((other.nodes?.[0] ?? other).adminUrl).host;
    await assertRefusesToStart([...FREE, '--admin-listen', address], { mentions: [address, 'SWITCHBOARD_ADMIN_LISTEN', 'switchboard (process '] });
  });

  test('on an address that makes no sense or is not this machine’s', async () => {
    for (const address of ['nonsense', '127.0.0.1', '127.0.0.1:99999', '']) {
      await assertRefusesToStart(['--listen', address], { mentions: 'listen' });
    }
  });

  test('on a host name: that an IP address is expected is said', async (t) => {
    const config = joinPath(await folder(t), 'switchboard.toml');
    await writeFile(config, 'listen = "localhost:3005"\n');
    for (const args of [['--listen', 'localhost:3005'], ['--admin-listen', 'localhost:3005'], ['--config', config]]) {
      await assertRefusesToStart(args, { mentions: ['localhost:3005', 'expected an IP address and a port, such as 127.0.0.1:3000'] });
    }
  });

  test('in a folder that cannot be written: the folder is named, and why', async (t) => {
    const missing = joinPath(await folder(t), 'missing');
    await assertRefusesToStart([...FREE, '--database-url', `sqlite://${missing}/x.db`], { mentions: [`there is no folder ${missing}`, 'os error 2'] });
    await assertRefusesToStart([...FREE, '--database-url', 'sqlite:///proc/x.db'], { mentions: ['the folder /proc cannot be written', 'os error'] });
  });

  test('with a database that cannot be written', async (t) => {
    const dir = await folder(t);
    const file = joinPath(dir, 'file');
    await writeFile(file, 'in the way');
    await mkdir(joinPath(dir, 'directory'));
    for (const path of [joinPath(file, 'x.db'), joinPath(dir, 'directory'), '/proc/switchboard.db']) {
      await assertRefusesToStart([...FREE, '--database-url', `sqlite://${path}`], { mentions: path });
    }
  });

  test('with a database that is none', async (t) => {
    const dir = await folder(t);
    const path = joinPath(dir, 'text.db');
    await writeFile(path, 'This is no database. '.repeat(1_000));
    await assertRefusesToStart([...FREE, '--database-url', `sqlite://${path}`], { mentions: path });
    for (const url of ['nonsense', 'mysql://localhost/x', '']) {
      await assertRefusesToStart([...FREE, '--database-url', url], { mentions: 'database' });
    }
  });

  test('with an unknown setting', async (t) => {
    const dir = await folder(t);
    const config = joinPath(dir, 'switchboard.toml');
    await writeFile(config, 'ring_timout = "30s"\n');
    await assertRefusesToStart([...FREE, '--config', config], { mentions: 'ring_timout' });
    await assertRefusesToStart([...FREE, '--ring-timout', '30s'], { mentions: '--ring-timout' });
    await assertRefusesToStart(FREE, { env: { SWITCHBOARD_RING_TIMOUT: '30s' }, mentions: 'SWITCHBOARD_RING_TIMOUT' });
    await assertRefusesToStart(['serv'], { mentions: 'serv' });
  });

  test('with a duration that is none', async (t) => {
    const dir = await folder(t);
    for (const [name, flag] of Object.entries({
      ring_timeout: '--ring-timeout',
      reconnect_grace: '--reconnect-grace',
      max_call_duration: '--max-call-duration',
    })) {
      const variable = `SWITCHBOARD_${name.toUpperCase()}`;
      const config = joinPath(dir, `${name}.toml`);
      for (const value of ['soon', '30', '-5s', '', '5 parsecs']) {
        await assertRefusesToStart([...FREE, `${flag}=${value}`], { mentions: name.split('_')[0] });
      }
      await assertRefusesToStart(FREE, { env: { [variable]: 'soon' }, mentions: ['soon'] });
      await writeFile(config, `${name} = "soon"\n`);
      await assertRefusesToStart([...FREE, '--config', config], { mentions: ['soon'] });
    }
  });

  test('with a configuration file that is missing or broken', async (t) => {
    const dir = await folder(t);
    const missing = joinPath(dir, 'missing.toml');
    await assertRefusesToStart([...FREE, '--config', missing], { mentions: missing });
    const broken = joinPath(dir, 'broken.toml');
    await writeFile(broken, 'listen = \n= 5 [[');
    await assertRefusesToStart([...FREE, '--config', broken], { mentions: broken });
    const wrongType = joinPath(dir, 'type.toml');
    await writeFile(wrongType, 'listen = 5\n');
    await assertRefusesToStart(['--config', wrongType], { mentions: 'listen' });
  });

  test('with a way of signing in that there is not', async () => {
    await assertRefusesToStart([...FREE, '--auth', 'magic'], { mentions: ['auth', 'magic'] });
  });

  test('with settings for tokens that do not go together, and no secret is said back', async (t) => {
    const dir = await folder(t);
    const secret = 'hunter2'.repeat(6);
    const SWITCHBOARD_JWT_SECRET = secret;
    const SWITCHBOARD_AUTH = 'jwt';
    const SWITCHBOARD_JWKS_URL = 'https://id.example.org/jwks.json';
    const config = joinPath(dir, 'secret.toml');
    await writeFile(config, `auth = "jwt"\njwt_secret = "${secret}\n`);
    for (const [args, env, mentions] of [
      [FREE, { SWITCHBOARD_AUTH }, 'SWITCHBOARD_JWT_SECRET'],
      [FREE, { SWITCHBOARD_JWT_SECRET }, 'SWITCHBOARD_AUTH'],
      [FREE, { SWITCHBOARD_AUTH: 'open', SWITCHBOARD_JWT_SECRET }, 'SWITCHBOARD_AUTH'],
      [FREE, { SWITCHBOARD_AUTH, SWITCHBOARD_JWT_SECRET, SWITCHBOARD_JWKS_URL }, 'only one'],
      [FREE, { SWITCHBOARD_AUTH, SWITCHBOARD_JWT_SECRET: 'hunter2' }, '32 bytes'],
      [FREE, { SWITCHBOARD_AUTH, SWITCHBOARD_JWKS_URL: 'http://anna:hunter2@id.example.org/' }, ['jwks_url', 'https']],
      [FREE, { SWITCHBOARD_AUTH, SWITCHBOARD_JWT_PUBLIC_KEY: secret }, 'jwt_public_key'],
      [FREE, { SWITCHBOARD_AUTH, SWITCHBOARD_JWT_PUBLIC_KEY: config }, 'jwt_public_key'],
      [[...FREE, '--config', config], {}, ['secret.toml', 'line 2']],
      [[...FREE, '--jwt-secret', secret], {}, 'SWITCHBOARD_AUTH'],
    ]) {
      await assertRefusesToStart(args, { env, mentions });
      const { stderr } = await runToExit(args, { env });
      assert.ok(!stderr.includes('hunter2'), stderr);
    }
  });

  test('with a log in a shape that there is not', async () => {
    await assertRefusesToStart([...FREE, '--log-format', 'xml'], { mentions: ['log-format', 'xml'] });
    await assertRefusesToStart(FREE, { env: { SWITCHBOARD_LOG_USERS: 'secret' }, mentions: ['log-users', 'secret'] });
  });

  test('open to the network without having been told so', async () => {
    await assertRefusesToStart(['--listen', '0.0.0.0:0'], { mentions: ['0.0.0.0', 'auth'] });
    await assertRefusesToStart(['--listen', '[::]:0'], { mentions: ['auth'] });
    await assertRefusesToStart([], { env: { SWITCHBOARD_LISTEN: '0.0.0.0:0' }, mentions: ['auth'] });
  });
});

describe('a start', { concurrency: true }, () => {
  test('says one line on stdout: the address to open', async (t) => {
    const server = await startServer();
    t.after(() => server.stop());
    assert.match(server.readyLine, /^switchboard is ready: open http:\/\/127\.0\.0\.1:\d+\/$/);
    assert.equal((await fetch(`${server.url}/`)).status, 200);
    assert.equal(server.process.stdout.split('\n').filter(Boolean).length, 1, server.process.stdout);
  });

  test('keeps its history in ./switchboard.db unless told otherwise', async (t) => {
    const dir = await folder(t);
    const run = launch(FREE, { dir });
    t.after(() => run.child.kill('SIGKILL'));
    await once(run.child.stdout, 'data');
    run.child.kill('SIGTERM');
    assert.deepEqual(await run.exit(), { code: 0, signal: null });
    await access(joinPath(dir, 'switchboard.db'));
  });

  test('`serve` is the same', async (t) => {
    const dir = await folder(t);
    const run = launch(['serve', ...FREE], { dir });
    t.after(() => run.child.kill('SIGKILL'));
    await once(run.child.stdout, 'data');
    assert.match(run.stdout, /^switchboard is ready: open /);
    run.child.kill('SIGINT');
    assert.deepEqual(await run.exit(), { code: 0, signal: null });
  });

  test('open to the network when told so', async (t) => {
    const dir = await folder(t);
    const run = launch(['--listen', '0.0.0.0:0', '--auth', 'open'], { dir });
    t.after(() => run.child.kill('SIGKILL'));
    await once(run.child.stdout, 'data');
    assert.match(run.stdout, /^switchboard is ready: open http:\/\/\S+:\d+\/\n$/);
    run.child.kill('SIGTERM');
    assert.deepEqual(await run.exit(), { code: 0, signal: null });
  });

  test('`config` prints the settings in force: a flag wins over the environment, that over the file', async (t) => {
    const dir = await folder(t);
    const config = joinPath(dir, 'switchboard.toml');
    await writeFile(config, 'ring_timeout = "11s"\nreconnect_grace = "12s"\nmax_call_duration = "13h"\nstun_urls = ["stun:file.example.org"]\n');
    const { code, stdout, stderr } = await runToExit(['config', '--config', config, '--ring-timeout', '31s'], {
      env: { SWITCHBOARD_RING_TIMEOUT: '21s', SWITCHBOARD_RECONNECT_GRACE: '22s', SWITCHBOARD_STUN_URLS: 'stun:a.example.org,stun:b.example.org' },
      dir,
    });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^ring_timeout = "31s"$/m);
    assert.match(stdout, /^reconnect_grace = "22s"$/m);
    assert.match(stdout, /^max_call_duration = "13h"$/m);
    assert.match(stdout.replace(/\s+/g, ' '), /stun_urls = \[ ?"stun:a\.example\.org", "stun:b\.example\.org",? ?\]/);

    // The output is a settings file with the same effect.
    const printed = joinPath(dir, 'printed.toml');
    await writeFile(printed, stdout);
    const again = await runToExit(['config', '--config', printed], { dir });
    assert.equal(again.code, 0, again.stderr);
    assert.equal(again.stdout, stdout);
  });

  test('`config` and `--help` print no secret', async (t) => {
    const dir = await folder(t);
    const env = {
      SWITCHBOARD_AUTH: 'jwt',
      SWITCHBOARD_JWT_SECRET: 'hunter2'.repeat(6),
      SWITCHBOARD_REDIS_URL: 'redis://:hunter2@redis',
      SWITCHBOARD_DATABASE_URL: 'postgres://anna:hunter2@db/calls',
    };
    for (const command of ['config', '--help']) {
      const { code, stdout, stderr } = await runToExit([command], { env, dir });
      assert.equal(code, 0, stderr);
      assert.ok(stdout.includes('jwt') && !stdout.includes('hunter2'), stdout);
    }
  });

  test('`config` without any setting prints the defaults', async (t) => {
    const { code, stdout } = await runToExit(['config'], {
      dir: await folder(t),
      env: { SWITCHBOARD_ADMIN_LISTEN: undefined },
    });
    assert.equal(code, 0);
    assert.match(stdout, /^listen = "127\.0\.0\.1:3000"$/m);
    assert.match(stdout, /^log_format = "pretty"$/m);
    assert.match(stdout, /^log_users = "plain"$/m);
    assert.match(stdout, /^admin_listen = "127\.0\.0\.1:9300"$/m);
    assert.match(stdout, /^database_url = "sqlite:\/\/switchboard\.db"$/m);
    assert.match(stdout, /^auth = "open"$/m);
    assert.match(stdout, /^ring_timeout = "30s"$/m);
    assert.match(stdout, /^reconnect_grace = "10s"$/m);
    assert.match(stdout, /^max_call_duration = "12h"$/m);
  });

  test('--help and --version explain and leave', async () => {
    for (const flag of ['--help', '--version']) {
      const { code, stdout } = await runToExit([flag]);
      assert.equal(code, 0);
      assert.match(stdout, /switchboard/i);
    }
  });
});

describe('leaving', { concurrency: true }, () => {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    test(`${signal} ends a server with connections and a call cleanly and soon`, async (t) => {
      const server = await startServer();
      t.after(() => rm(server.dir, { recursive: true, force: true }));
      const { caller, callee } = await activeCall(t, server, { callee: { transports: ['polling'] } });
      const raw = await rawSocket(t, server, { joins: false });
      const half = tcp(t, server);
      await once(half.socket, 'connect');
      half.socket.write('GET / HTTP/1.1\r\n');

      const began = Date.now();
      assert.deepEqual(await server.kill(signal), { code: 0, signal: null }, server.logs());
      assert.ok(Date.now() - began < 8_000, `it took ${Date.now() - began} ms`);
      assert.doesNotMatch(server.logs(), /panicked/);
      for (const client of [caller, callee]) {
        const reason = await client.next('disconnect');
        const over = client.socket.io.opts.transports[0];
        assert.notEqual(reason, 'io server disconnect', `told this over ${over}, the library does not come back by itself`);
      }
      await within(5_000, raw.closed, 'raw sockets are closed');
      await within(5_000, half.closed, 'half-open handshakes are closed');
    });
  }
});
