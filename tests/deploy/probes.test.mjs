// Each probe of the manifests, executed as its tool executes it, against the real server in each state that the probe
// must distinguish.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { pair } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { freePort, startRedis } from '../support/cluster.mjs';
import { compose, dockerfile, LAYERS, rendered } from '../support/deployment.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { adminUrlOf, BINARY, launch, privateFolder, withoutSettings } from '../support/server.mjs';

const succeeds = (program, args, env) =>
  new Promise((resolve) => execFile(program, args, { timeout: 5_000, env: { ...withoutSettings(process.env), ...env } }, (error) => resolve(error === null)));

/** The results of the probes of Kubernetes and Docker: `{startup, liveness, readiness, image}`. */
async function opinionsOf(container, adminUrl) {
  const ask = async ({ httpGet }) => {
    const { status } = await fetch(`${adminUrl}${httpGet.path}`);
    return status >= 200 && status < 400;
  };
  const { healthCheck: [, ...args], environment } = dockerfile();
  const SWITCHBOARD_ADMIN_LISTEN = environment.SWITCHBOARD_ADMIN_LISTEN.replace('9300', new URL(adminUrl).port);
  return {
    startup: await ask(container.startupProbe),
    liveness: await ask(container.livenessProbe),
    readiness: await ask(container.readinessProbe),
    image: await succeeds(BINARY, args, { SWITCHBOARD_ADMIN_LISTEN }),
  };
}

describe('probes', { concurrency: true }, () => {
  test('of a node that waits for Redis, serves, and drains', async (t) => {
    const port = await freePort();
    const dir = await privateFolder();
    const run = launch(['--listen', '127.0.0.1:0', '--redis-url', `redis://127.0.0.1:${port}`, '--drain-window', '3s'], { dir });
    t.after(async () => {
      run.child.kill('SIGKILL');
      await run.exit();
      await rm(dir, { recursive: true, force: true });
    });
    const adminUrl = await adminUrlOf(run);
    const containers = LAYERS.map((layer) => rendered(layer).one('Deployment', 'switchboard').spec.template.spec.containers[0]);
    const think = async (expected) => {
      for (const container of containers) assert.deepEqual(await opinionsOf(container, adminUrl), expected);
    };
    await think({ startup: true, liveness: true, readiness: false, image: false });
    const redis = await startRedis({ port });
    t.after(() => redis.stop());
    await eventually(() => run.stdout.includes('ready'), 'it serves');
    await think({ startup: true, liveness: true, readiness: true, image: true });
    // A connected client, so that the node has something to wait for.
    await pair(t, { url: /http:\S+/.exec(run.stdout)[0] });
    run.child.kill('SIGTERM');
    await eventually(async () => (await fetch(`${adminUrl}/readyz`)).status === 503, 'it drains');
    await think({ startup: true, liveness: true, readiness: false, image: false });
    assert.deepEqual(await run.exit(), { code: 0, signal: null });
  });

  /** The commands of compose and of the overlay `dev`, which probes in its pods, as lines for a shell. */
  const checksOf = (service) => {
    const [kind, ...words] = compose().services[service].healthcheck.test;
    assert.ok(['CMD', 'CMD-SHELL'].includes(kind));
    const [{ readinessProbe }] = rendered('overlays/dev').one('Deployment', service).spec.template.spec.containers;
    return [words.join(' '), readinessProbe.exec.command.join(' ')];
  };

  test('of a Redis that is there and one that is not', async (t) => {
    const redis = await startRedis();
    t.after(() => redis.stop());
    for (const line of checksOf('redis')) {
      const ask = (port) => succeeds('sh', ['-c', line.replace('redis-cli', `redis-cli -p ${port}`)]);
      assert.deepEqual([await ask(redis.port), await ask(await freePort())], [true, false], line);
    }
  });

  test('of a Postgres that is there and one that is not', async (t) => {
    const postgres = await startPostgres({ schema: false });
    t.after(() => postgres.stop());
    for (const line of checksOf('postgres')) {
      const ask = (port) => succeeds('sh', ['-c', line], { PGPORT: `${port}` });
      assert.deepEqual([await ask(postgres.port), await ask(await freePort())], [true, false], line);
    }
  });
});
