// `switchboard doctor` against real services, well and each broken in its way.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { startBackend } from '../support/backend.mjs';
import { startBalancer } from '../support/balancer.mjs';
import { freePort, startCluster, startRedis } from '../support/cluster.mjs';
import { startCoturn } from '../support/coturn.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { startProxy } from '../support/proxy.mjs';
import { BINARY, privateFolder, runToExit, withoutSettings } from '../support/server.mjs';
import { movableTimeOfDay } from '../support/timeofday.mjs';
import { JWT, SECRET, tokenOf } from '../support/tokens.mjs';

/** Longer than any check may take, with the start of the process. */
const LONGEST_MS = 15_000;

/** Few enough for the open files of any shell. */
const FEW = { SWITCHBOARD_LIMITS: 'sockets=100' };

/** The findings `{verdict, part, text}` of a run, and its exit code. */
async function examine(env, args = []) {
  const began = Date.now();
  const { code, stdout, stderr } = await runToExit(['doctor', ...args], { env: { ...FEW, ...env } });
  assert.equal(stderr, '', stderr);
  assert.ok(Date.now() - began < LONGEST_MS, stdout);
  const findings = stdout.trimEnd().split('\n').map((line) => {
    const [, verdict, part, text] = /^(ok|warn|FAIL) +(\w+) +(.+)$/.exec(line) ?? assert.fail(`not a finding: ${line}`);
    return { verdict, part, text };
  });
  assert.equal(code, findings.some(({ verdict }) => verdict === 'FAIL') ? 1 : 0, stdout);
  return { code, findings, stdout };
}

/** Exactly this part is wrong, or doubtful, and the line says so and what to do. */
async function assertFound(verdict, part, words, env, args) {
  const { findings, stdout } = await examine(env, args);
  const found = findings.filter((one) => one.verdict === verdict && one.part === part && words.every((word) => one.text.includes(word)));
  assert.equal(found.length, 1, `${verdict} ${part} ${words}:\n${stdout}`);
  if (verdict === 'FAIL') assert.deepEqual(findings.filter((one) => one.verdict === 'FAIL' && one.part !== part), [], stdout);
  return findings;
}

const stopping = (t, service) => (t.after(() => service.stop()), service);

test('everything well is exit code 0', async (t) => {
  const [redis, postgres, coturn] = await Promise.all([startRedis(), startPostgres(), startCoturn('secret')]);
  for (const service of [redis, postgres, coturn]) stopping(t, service);
  const { code, findings, stdout } = await examine({
    SWITCHBOARD_REDIS_URL: redis.url,
    SWITCHBOARD_DATABASE_URL: postgres.url,
    SWITCHBOARD_STUN_URLS: `stun:127.0.0.1:${coturn.port}`,
    SWITCHBOARD_TURN_URLS: `${coturn.url},${coturn.tcpUrl}`,
    SWITCHBOARD_TURN_SECRET: 'secret',
    ...JWT,
  });
  assert.equal(code, 0, stdout);
  assert.deepEqual([...new Set(findings.map(({ verdict }) => verdict))], ['ok'], stdout);
  for (const words of [
    'version 7.', 'evicts no keys', 'a round trip takes', 'a message to a channel arrives', 'its clock and this machine',
    'Postgres 1', 'the schema is at version 3', 'a transaction takes', 'a shared secret',
    `stun:127.0.0.1:${coturn.port}: sees this machine as 127.0.0.1:`,
    `${coturn.url}: gave a relay at 127.0.0.1:`, `${coturn.tcpUrl}: gave a relay at 127.0.0.1:`,
  ]) assert.ok(stdout.includes(words), `${words}:\n${stdout}`);
  assert.equal(findings.filter(({ text }) => /^the partition calls_\d{4}_\d\d will be made/.test(text)).length, 3, stdout);
  assert.ok(!stdout.includes(SECRET) && !stdout.includes('secret/'), stdout);
  assert.deepEqual(await redis.keys?.(), [], 'nothing is left in Redis');
});

describe('Redis', { concurrency: true }, () => {
  test('that is not there, or not Redis', async (t) => {
    await assertFound('FAIL', 'redis', ['see that it runs'], { SWITCHBOARD_REDIS_URL: `redis://127.0.0.1:${await freePort()}` });
    await assertFound('FAIL', 'redis', ['redis://'], { SWITCHBOARD_REDIS_URL: 'http://127.0.0.1:6379' });
    const silent = createTcpServer(() => {}).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    t.after(() => silent.close());
    await assertFound('FAIL', 'redis', ['see that it'], { SWITCHBOARD_REDIS_URL: `redis://127.0.0.1:${silent.address().port}` });
  });

  test('with another password, and without rights to its channels', async (t) => {
    const redis = stopping(t, await startRedis());
    await redis.ask('ACL SETUSER few on >right ~* +@all resetchannels');
    await assertFound('FAIL', 'redis', ['compare user and password'], { SWITCHBOARD_REDIS_URL: `redis://few:wrong@127.0.0.1:${redis.port}` });
    const findings = await assertFound('FAIL', 'redis', ['NOPERM', 'grant the user'], { SWITCHBOARD_REDIS_URL: `redis://few:right@127.0.0.1:${redis.port}` });
    assert.ok(!JSON.stringify(findings).includes('right@'));
  });

  test('that is too old, evicts, or is a replica', async (t) => {
    const redis = stopping(t, await startRedis());
    const version = Buffer.from('redis_version:7');
    const old = stopping(t, await startProxy(redis.port, {
      rewrite: (bytes) => {
        const at = bytes.indexOf(version);
        if (at >= 0) bytes.write('6', at + version.length - 1);
        return bytes;
      },
    }));
    await assertFound('FAIL', 'redis', ['version 6.', 'upgrade to 7'], { SWITCHBOARD_REDIS_URL: `redis://127.0.0.1:${old.port}` });
    const evicting = stopping(t, await startRedis({ args: ['--maxmemory-policy', 'allkeys-lru'] }));
    await assertFound('FAIL', 'redis', ['allkeys-lru', 'noeviction'], { SWITCHBOARD_REDIS_URL: evicting.url });
    const replica = stopping(t, await startRedis({ args: ['--replicaof', '127.0.0.1', `${redis.port}`] }));
    await assertFound('FAIL', 'redis', ['replica', 'primary'], { SWITCHBOARD_REDIS_URL: replica.url });
  });

  test('that is far away, or has another time', async (t) => {
    const time = stopping(t, await movableTimeOfDay());
    const redis = stopping(t, await startRedis({ env: time.env }));
    const far = stopping(t, await startProxy(redis.port));
    far.slow(30);
    await assertFound('warn', 'redis', ['a round trip takes', 'near Redis'], { SWITCHBOARD_REDIS_URL: `redis://127.0.0.1:${far.port}` });
    await time.move(-90);
    await assertFound('FAIL', 'redis', ['differ by', 'set both by NTP'], { SWITCHBOARD_REDIS_URL: redis.url });
  });
});

describe('the history', { concurrency: true }, () => {
  test('in a Postgres that is not there, has no schema, or an old one', async (t) => {
    await assertFound('FAIL', 'history', ['see that Postgres runs'], { SWITCHBOARD_DATABASE_URL: `postgres://anna:hidden@127.0.0.1:${await freePort()}/x` });
    const postgres = stopping(t, await startPostgres({ schema: false }));
    const env = { SWITCHBOARD_DATABASE_URL: postgres.url };
    await assertFound('FAIL', 'history', ['there is no schema', 'switchboard migrate'], env);
    await runToExit(['migrate'], { env });
    await postgres.ask('DELETE FROM _sqlx_migrations WHERE version = 3');
    await assertFound('FAIL', 'history', ['1 migrations behind this build', 'switchboard migrate'], env);
  });

  test('whose months cannot be made', async (t) => {
    const postgres = stopping(t, await startPostgres());
    await postgres.ask("CREATE USER poor; GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor");
    const poor = postgres.url.replace('postgres@', 'poor@');
    const { findings } = await examine({ SWITCHBOARD_DATABASE_URL: poor });
    assert.equal(findings.filter(({ verdict, text }) => verdict === 'FAIL' && text.includes('may not create')).length, 3);
    await postgres.ask("DO $$ BEGIN EXECUTE format('CREATE TABLE %I ()', 'calls_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')); END $$");
    await assertFound('FAIL', 'history', ['is not a partition', 'attach it again'], { SWITCHBOARD_DATABASE_URL: postgres.url });
  });

  test('in SQLite beside Redis, or in a file that is none', async (t) => {
    const redis = stopping(t, await startRedis());
    await assertFound('warn', 'history', ['a part of it only', 'Postgres'], { SWITCHBOARD_REDIS_URL: redis.url });
    const text = join(await privateFolder(), 'text.db');
    await writeFile(text, 'This is no database. '.repeat(1_000));
    await assertFound('FAIL', 'history', [text, 'may read and write'], { SWITCHBOARD_DATABASE_URL: `sqlite://${text}` });
  });
});

describe('tokens', { concurrency: true }, () => {
  async function keySet(t, body, status = 200) {
    const issuer = createServer((_, response) => response.writeHead(status).end(body)).listen(0, '127.0.0.1');
    await once(issuer, 'listening');
    t.after(() => issuer.close());
    return { SWITCHBOARD_AUTH: 'jwt', SWITCHBOARD_JWKS_URL: `http://127.0.0.1:${issuer.address().port}/jwks.json` };
  }

  test('of a key set', async (t) => {
    const jwk = (type, options) => generateKeyPairSync(type, options).publicKey.export({ format: 'jwk' });
    const keys = [{ ...jwk('ec', { namedCurve: 'P-256' }), kid: '1' }, { ...jwk('rsa', { modulusLength: 2048 }), kid: '2' }];
    const { findings, code } = await examine(await keySet(t, JSON.stringify({ keys: [...keys, { kty: 'other' }] })));
    assert.equal(code, 0);
    assert.ok(findings.some(({ text }) => text.endsWith('has 2 usable keys')), JSON.stringify(findings));
  });

  test('of a key set that has none, is none, or is not there', async (t) => {
    for (const [body, status, words] of [['{"keys":[{"kty":"oct","k":"AAAA"}]}', 200, 'no key of use'], ['<html>', 200, 'not a key set'], ['', 503, '503']]) {
      await assertFound('FAIL', 'tokens', [words, 'SWITCHBOARD_JWKS_URL'], await keySet(t, body, status));
    }
    const SWITCHBOARD_JWKS_URL = `http://127.0.0.1:${await freePort()}/`;
    await assertFound('FAIL', 'tokens', ['cannot be reached'], { SWITCHBOARD_AUTH: 'jwt', SWITCHBOARD_JWKS_URL });
  });

  test('that nobody needs, though others reach the service', async () => {
    await assertFound('warn', 'tokens', ['open mode', 'SWITCHBOARD_AUTH=jwt'], { SWITCHBOARD_LISTEN: '0.0.0.0:3000', SWITCHBOARD_AUTH: 'open' });
  });
});

test('a backend that does not answer', async (t) => {
  const backend = await startBackend();
  const env = { SWITCHBOARD_AUTHORIZE_URL: backend.url };
  const { findings } = await examine(env);
  assert.equal(findings.find(({ part }) => part === 'authorize').verdict, 'ok');
  await backend.stop();
  await assertFound('FAIL', 'authorize', ['cannot be reached', 'SWITCHBOARD_AUTHORIZE_FAIL'], env);
});

describe('relays', { concurrency: true }, () => {
  const relay = (url, secret = 'right') => ({ SWITCHBOARD_TURN_URLS: url, SWITCHBOARD_TURN_SECRET: secret });

  test('with another secret', async (t) => {
    const coturn = stopping(t, await startCoturn('right'));
    for (const url of [coturn.url, coturn.tcpUrl]) {
      await assertFound('FAIL', 'turn', [url, 'refused with 401', 'static-auth-secret'], relay(url, 'wrong'));
    }
  });

  test('that are not there, say nothing, or speak no TURN', async (t) => {
    const nobody = await freePort();
    for (const over of ['udp', 'tcp']) {
      const url = `turn:127.0.0.1:${nobody}?transport=${over}`;
      await assertFound('FAIL', 'turn', [url, 'firewall'], relay(url));
    }
    const silent = createTcpServer(() => {}).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    t.after(() => silent.close());
    await assertFound('FAIL', 'turn', ['no answer within 3s'], relay(`turn:127.0.0.1:${silent.address().port}?transport=tcp`));
    const web = createServer((_, response) => response.end()).listen(0, '127.0.0.1');
    await once(web, 'listening');
    t.after(() => web.close());
    await assertFound('FAIL', 'turn', ['firewall'], relay(`turn:127.0.0.1:${web.address().port}?transport=tcp`));
  });

  test('that are missing', async () => {
    await assertFound('warn', 'turn', ['SWITCHBOARD_TURN_URLS'], {});
  });
});

test('a limit of open files below that of sockets', async () => {
  const run = (listen) =>
    new Promise((resolve) => {
      const env = { ...withoutSettings(process.env), SWITCHBOARD_LISTEN: listen, SWITCHBOARD_AUTH: 'open', SWITCHBOARD_LIMITS: 'sockets=5000' };
      privateFolder().then((cwd) => execFile('prlimit', ['--nofile=1024:1024', BINARY, 'doctor'], { env, cwd }, (error, stdout) => resolve({ code: error?.code ?? 0, stdout })));
    });
  const here = await run('127.0.0.1:3000');
  assert.match(here.stdout, /^warn  files +1024 open files .+ 5000 sockets .+: .*5100 or more/m);
  assert.equal(here.code, 0);
  const everywhere = await run('0.0.0.0:3000');
  assert.match(everywhere.stdout, /^FAIL  files /m);
  assert.equal(everywhere.code, 1);
});

describe('the address in front', { concurrency: true }, () => {
  async function front(t, { rewrite, env = { SWITCHBOARD_TRUSTED_PROXIES: 'hops:1' } } = {}) {
    const cluster = stopping(t, await startCluster(3, { env }));
    return stopping(t, await startBalancer(cluster.nodes, { rewrite }));
  }
  const without = (line) => (text) => text.split('\n').filter((one) => !one.includes(line)).join('\n');
  const adding = (line) => (text) => text.replace('default_backend nodes', `${line}\n    default_backend nodes`);
  const at = ({ url }) => ['--url', url];

  test('that is well', async (t) => {
    const { stdout, findings, code } = await examine({}, at(await front(t)));
    assert.equal(code, 0, stdout);
    assert.deepEqual(findings.filter(({ part }) => part === 'url').map(({ verdict }) => verdict), ['ok', 'ok', 'ok', 'ok', 'ok'], stdout);
    for (const words of ['websockets pass', '6 requests of a polling session reached one node, by a cookie', 'becomes a websocket', 'a node sees this client as 127.0.0.1, by its proxy 127.0.0.1']) {
      assert.ok(stdout.includes(words), `${words}:\n${stdout}`);
    }
  });

  test('that breaks what clients need', async (t) => {
    for (const [rewrite, words, env] of [
      [without('cookie SIO_NODE'), ['another node, as no cookie was set', 'sticky']],
      [adding('http-request del-header Upgrade'), ['a websocket is refused', 'Upgrade']],
      [adding('http-request set-header Host calls.internal:1'), ['a websocket is refused', 'Host unchanged'], { ...JWT, SWITCHBOARD_TRUSTED_PROXIES: 'hops:1' }],
      [(text) => without('option forwardfor')(without('del-header X-Forwarded-For')(text)), ['a client can choose the address', 'delete the header']],
      [undefined, ['which is not trusted', 'SWITCHBOARD_TRUSTED_PROXIES'], {}],
    ]) {
      const url = at(await front(t, { rewrite, ...(env && { env }) }));
      const own = env?.SWITCHBOARD_JWT_SECRET ? JWT : {};
      const { findings, stdout } = await examine(own, url);
      assert.ok(findings.some(({ verdict, part, text }) => verdict === 'FAIL' && part === 'url' && words.every((word) => text.includes(word))), `${words}:\n${stdout}`);
    }
  });

  test('that says nothing of clients', async (t) => {
    await assertFound('warn', 'url', ['no X-Forwarded-For', 'have it send'], {}, at(await front(t, { rewrite: without('option forwardfor') })));
  });

  test('that believes tokens: a secret makes one, otherwise one is given', async (t) => {
    const balancer = await front(t, { env: { ...JWT, SWITCHBOARD_TRUSTED_PROXIES: 'hops:1' } });
    const { stdout, code } = await examine(JWT, at(balancer));
    assert.equal(code, 0, stdout);
    assert.ok(stdout.includes('by its proxy 127.0.0.1'), stdout);
    const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const env = { SWITCHBOARD_AUTH: 'jwt', SWITCHBOARD_JWT_PUBLIC_KEY: publicKey.export({ type: 'spki', format: 'pem' }) };
    await assertFound('warn', 'url', ['were not checked', '--token'], env, at(balancer));
    const token = tokenOf('ops', { scope: 'admin' });
    assert.ok((await examine(env, [...at(balancer), '--token', token])).stdout.includes('by its proxy 127.0.0.1'));
    await assertFound('warn', 'url', ['403', 'scope admin'], env, [...at(balancer), '--token', tokenOf('anna')]);
  });

  test('that is not there, or leads elsewhere', async (t) => {
    await assertFound('FAIL', 'url', ['cannot be reached', 'resolves its name'], {}, ['--url', `http://127.0.0.1:${await freePort()}`]);
    const elsewhere = createServer((_, response) => response.writeHead(308, { location: 'https://calls.example.org/' }).end()).listen(0, '127.0.0.1');
    await once(elsewhere, 'listening');
    t.after(() => elsewhere.close());
    await assertFound('FAIL', 'url', ['308', 'redirects'], {}, ['--url', `http://127.0.0.1:${elsewhere.address().port}`]);
    const { code, stderr } = await runToExit(['doctor', '--url', 'calls.example.org']);
    assert.deepEqual([code, /^error: --url: expected https:/.test(stderr)], [1, true], stderr);
  });
});
