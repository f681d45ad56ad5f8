// The connection to Redis: encryption, passwords, and unsuitable servers.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, assertCallsWork, assertTalking } from '../support/calls.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { startProxy } from '../support/proxy.mjs';
import { runToExit } from '../support/server.mjs';

async function redisServer(t, options) {
  const redis = await startRedis(options);
  t.after(() => redis.stop());
  return redis;
}

/** Nodes on this Redis can carry a call between them. */
async function assertServes(t, redis, options) {
  const cluster = await startCluster(2, { redis, ...options });
  t.after(() => cluster.stop());
  const { caller, callee } = await activeCall(t, cluster);
  await assertTalking(caller, callee);
  return cluster;
}

/**
 * The node refuses to start at once, with one sentence that has these words, and exit code 1. `secrets` are not
 * printed.
 */
async function assertRefuses(url, { mentions, secrets = [], env }) {
  const { code, stderr } = await runToExit(['--listen', '127.0.0.1:0', '--redis-url', url], { env: { RUST_LOG: 'debug', ...env } });
  assert.equal(code, 1, stderr);
  const errors = stderr.split('\n').filter((line) => line.startsWith('error: '));
  assert.equal(errors.length, 1, stderr);
  assert.match(errors[0], /^error: cannot use Redis: \S/);
  assert.doesNotMatch(errors[0], /Error \{|Custom|Some\(/);
  for (const words of mentions) assert.ok(errors[0].includes(words), `should mention ${words}: ${errors[0]}`);
  for (const secret of secrets) assert.ok(!stderr.includes(secret), `a password is printed: ${stderr}`);
}

const withCredentials = (redis, credentials) => redis.url.replace('://', `://${credentials}@`);

describe('with TLS', { concurrency: true }, () => {
  test('a node trusts the authority in SSL_CERT_FILE', async (t) => {
    const redis = await startRedis({ tls: true });
    await assertServes(t, redis, { env: { SSL_CERT_FILE: redis.authority } });
  });

  test('a server whose certificate nobody trusted signed is refused', async (t) => {
    const redis = await redisServer(t, { tls: true });
    await assertRefuses(redis.url, { mentions: ['certificate', 'UnknownIssuer', 'SSL_CERT_FILE'] });
  });

  test('a server whose certificate is for another name is refused', async (t) => {
    const redis = await redisServer(t, { tls: true });
    const url = redis.url.replace('127.0.0.1', 'localhost');
    await assertRefuses(url, { mentions: ['certificate', 'NotValidForName'], env: { SSL_CERT_FILE: redis.authority } });
  });

  test('a file of certificates that is not there is one sentence', async (t) => {
    const redis = await redisServer(t, { tls: true });
    await assertRefuses(redis.url, { mentions: ['/nowhere.pem'], env: { SSL_CERT_FILE: '/nowhere.pem' } });
  });
});

describe('with a password', { concurrency: true }, () => {
  const RIGHTS = ['~sb:*', '+@read', '+@write', '+@connection', '+@pubsub', '+@scripting', '+info', '+time'];
  const user = (password, channels = '&sb:*') => ['--user', 'switchboard', 'on', `>${password}`, ...RIGHTS, channels];

  test('the right one serves', async (t) => {
    const redis = await startRedis({ args: ['--requirepass', 'hunter2'] });
    redis.url = withCredentials(redis, ':hunter2');
    const cluster = await assertServes(t, redis, { env: { RUST_LOG: 'debug' } });
    assert.ok(!cluster.logs().includes('hunter2'), 'no password in the log');
  });

  test('a user of its own with the right one serves', async (t) => {
    const redis = await startRedis({ args: [...user('s3cret@:/'), '--user', 'default', 'off'] });
    redis.url = withCredentials(redis, 'switchboard:s3cret%40%3A%2F');
    const cluster = await assertServes(t, redis, { env: { RUST_LOG: 'debug' } });
    assert.ok(!/s3cret/.test(cluster.logs()), 'no password in the log');
  });

  test('a wrong one is refused and not printed', async (t) => {
    const redis = await redisServer(t, { args: ['--requirepass', 'right', ...user('right')] });
    for (const credentials of [':hunter2', 'switchboard:hunter2']) {
      await assertRefuses(withCredentials(redis, credentials), { mentions: ['password'], secrets: ['hunter2'] });
    }
    await assertRefuses(redis.url, { mentions: ['NOAUTH'] });
  });

  test('a user who may not use the channels is refused', async (t) => {
    const redis = await redisServer(t, { args: user('hunter2', 'resetchannels') });
    await assertRefuses(withCredentials(redis, 'switchboard:hunter2'), { mentions: ['channels'], secrets: ['hunter2'] });
  });

  test('it is not printed with a URL that cannot be read', async () => {
    for (const url of ['redis://:hunter2@127.0.0.1:port', 'https://:hunter2@host', 'redis//:hunter2@host', 'redis-sentinel://:hunter2@127.0.0.1:1']) {
      await assertRefuses(url, { mentions: [], secrets: ['hunter2'] });
    }
  });
});

describe('a Redis', { concurrency: true }, () => {
  test('before 7 is refused', async (t) => {
    const redis = await redisServer(t);
    const rewrite = (bytes) => Buffer.from(bytes.toString('latin1').replace(/redis_version:\d+\.\d+\.\d+/, (was) => 'redis_version:6.2.14'.padEnd(was.length).slice(0, was.length)), 'latin1');
    const proxy = await startProxy(redis.port, { rewrite });
    t.after(() => proxy.stop());
    await assertRefuses(`redis://127.0.0.1:${proxy.port}`, { mentions: ['6.2.1', '7 or later'] });
  });

  test('that is still loading is waited for', async (t) => {
    const redis = await startRedis({ args: ['--enable-debug-command', 'local'] });
    await redis.saveMuch();
    await redis.restart();
    const cluster = await startCluster(1, { redis });
    t.after(() => cluster.stop());
    assert.match(cluster.logs(), /WARN .*Redis is still loading/);
    await assertCallsWork(t, cluster);
  });

  test('that may evict keys is warned of, with what to set', async (t) => {
    for (const policy of ['allkeys-lru', 'noeviction']) {
      const redis = await startRedis({ args: ['--maxmemory-policy', policy] });
      const cluster = await startCluster(1, { redis });
      t.after(() => cluster.stop());
      const warnings = cluster.logs().split('\n').filter((line) => line.includes('WARN') && line.includes('maxmemory-policy'));
      assert.equal(warnings.length, policy === 'noeviction' ? 0 : 1, cluster.logs());
      assert.ok(warnings.every((line) => line.includes('noeviction') && line.includes(policy)));
    }
  });
});
