// Commands beside `serve`.

import assert from 'node:assert/strict';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { freePort } from '../support/cluster.mjs';
import { knownSettings } from '../support/deployment.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { adminUrlOf, launch, privateFolder, runToExit, startServer } from '../support/server.mjs';

const server = await startServer();
after(() => server.stop());

describe('health', { concurrency: true }, () => {
  const ask = (adminUrl, { args = [] } = {}) => runToExit(['health', ...args], { env: { SWITCHBOARD_ADMIN_LISTEN: new URL(adminUrl).host } });
  const { adminUrl } = server.nodes?.[0] ?? server;

  test('of a ready node is exit code 0 and a line', async () => {
    const { code, stdout, stderr } = await ask(adminUrl);
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: `${adminUrl}/readyz: 200 ok\n`, stderr: '' });
    const everywhere = `http://0.0.0.0:${new URL(adminUrl).port}`;
    assert.equal((await ask(everywhere)).stdout, stdout, 'a listener on all addresses is asked on loopback');
  });

  test('depends on no other setting', async () => {
    assert.equal((await ask(adminUrl, { args: ['--turn-secret', 'incomplete'] })).code, 0);
  });

  test('of a node that waits for Redis is exit code 1, and says why', async (t) => {
    const redis = `redis://127.0.0.1:${await freePort()}`;
    const starting = launch(['--listen', '127.0.0.1:0', '--redis-url', redis], { dir: await privateFolder() });
    t.after(() => starting.child.kill('SIGKILL'));
    const { code, stdout } = await ask(await adminUrlOf(starting));
    assert.equal(code, 1);
    assert.match(stdout, /^http:\S+\/readyz: 503 starting.*\n$/);
  });

  test('of a node that is not there or frozen is exit code 1, within seconds', async (t) => {
    const nobody = await ask(`http://127.0.0.1:${await freePort()}`);
    assert.equal(nobody.code, 1);
    assert.match(nobody.stderr, /^error: http:\S+\/readyz: no node answers: SWITCHBOARD_ADMIN_LISTEN .+: cannot be reached.*\n$/);
    const frozen = await startServer();
    t.after(() => frozen.stop());
    const { process, adminUrl: address } = frozen.nodes?.[0] ?? frozen;
    process.child.kill('SIGSTOP');
    const { code, stderr } = await ask(address);
    process.child.kill('SIGCONT');
    assert.deepEqual({ code, isLate: stderr.includes('no answer within 3s') }, { code: 1, isLate: true }, stderr);
  });
});

describe('migrate --plan', { concurrency: true }, () => {
  const plan = (url) => runToExit(['migrate', '--plan', '--database-url', url]);

  test('of SQLite says what is pending, and makes no file', async (t) => {
    const dir = await privateFolder();
    t.after(() => rm(dir, { recursive: true, force: true }));
    const url = `sqlite://${join(dir, 'calls.db')}`;
    const before = await plan(url);
    assert.equal(before.code, 2, before.stderr);
    assert.match(before.stdout, /^sqlite:\S+: the database is empty: 4 migrations are pending\n  migration 1: calls\n/);
    assert.deepEqual(await readdir(dir), []);
    assert.equal((await runToExit(['migrate', '--database-url', url])).code, 0);
    const files = await readdir(dir);
    const bytes = await readFile(join(dir, 'calls.db'));
    const after = await plan(url);
    assert.deepEqual([after.code, after.stdout], [0, `${url}: the schema is at version 4: nothing is pending\n`], after.stderr);
    assert.deepEqual(await readdir(dir), files);
    assert.deepEqual(await readFile(join(dir, 'calls.db')), bytes);
  });

  test('of a file in use reads what its node has written', async (t) => {
    const busy = await startServer();
    t.after(() => busy.stop());
    const { db } = busy.nodes?.[0] ?? busy;
    const { code, stdout, stderr } = await plan(`sqlite://${db}`);
    assert.deepEqual([code, stdout.endsWith(': nothing is pending\n')], [0, true], stdout + stderr);
  });

  test('of Postgres names migrations and partitions, and makes none', async (t) => {
    const postgres = await startPostgres({ schema: false });
    t.after(() => postgres.stop());
    const tables = () => postgres.ask("SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace");
    const before = await plan(postgres.url);
    assert.equal(before.code, 2, before.stderr);
    assert.match(before.stdout, /: the database is empty: 3 migrations are pending\n  migration 1: calls\n  migration 2: heartbeats\n  migration 3: live calls\n$/);
    assert.equal(await tables(), '');

    await runToExit(['migrate', '--database-url', postgres.url]);
    const made = await tables();
    const after = await plan(postgres.url);
    assert.equal(after.code, 0, after.stderr);
    assert.match(after.stdout, /: the schema is at version 3: nothing is pending\n(  partition calls_\d{4}_\d\d: made by the nodes, while they run\n){3}$/);
    assert.equal(await tables(), made);

    await postgres.ask('DELETE FROM _sqlx_migrations WHERE version = 3');
    const behind = await plan(postgres.url);
    assert.equal(behind.code, 2);
    assert.match(behind.stdout, /: the schema is at version 2: 1 migration is pending\n  migration 3: live calls\n/);
  });

  test('of a database that cannot be read is exit code 1, at once', async () => {
    const { code, stderr } = await plan(`postgres://anna:hidden@127.0.0.1:${await freePort()}/x`);
    assert.equal(code, 1);
    assert.match(stderr, /^error: cannot use the database postgres:\/\/anna:\*\*\*@\S+: it is not reachable[^\n]*\n$/);
  });
});

describe('config --defaults', () => {
  test('prints a settings file that changes nothing', async (t) => {
    const dir = await privateFolder();
    t.after(() => rm(dir, { recursive: true, force: true }));
    const { code, stdout } = await runToExit(['config', '--defaults'], { dir });
    assert.equal(code, 0);
    for (const name of knownSettings()) if (name !== 'SWITCHBOARD_CONFIG') assert.ok(stdout.includes(`. ${name}\n`) || stdout.includes(`\n# ${name}\n`), name);
    await writeFile(join(dir, 'switchboard.toml'), stdout);
    const [file, none] = await Promise.all([runToExit(['config', '--config', 'switchboard.toml'], { dir }), runToExit(['config'], { dir })]);
    assert.deepEqual([file.code, file.stderr], [0, '']);
    assert.equal(file.stdout, none.stdout);
  });
});
