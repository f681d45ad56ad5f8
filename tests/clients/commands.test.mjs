// Commands beside `serve`.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { freePort } from '../support/cluster.mjs';
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
