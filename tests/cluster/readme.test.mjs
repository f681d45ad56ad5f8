// The commands in the documents that start several nodes on one machine do what they say.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { assertCallsWork } from '../support/calls.mjs';
import { eventually } from '../support/check.mjs';
import { freePort } from '../support/cluster.mjs';
import { BINARY, privateFolder, withoutSettings } from '../support/server.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** The first shell block after this heading, with other ports, the binary under test, and all in a folder of its own. */
async function run(t, document, heading, ports) {
  const text = await readFile(join(root, document), 'utf8');
  const [, block] = /```sh\n(.*?)```/s.exec(text.slice(text.indexOf(heading))) ?? assert.fail('no commands');
  let commands = block.replace(/^cargo build.*$/m, '').replace(/^cd .*$/m, '');
  commands = commands.replaceAll('$OLDPWD/target/release/switchboard', BINARY).replaceAll('target/release/switchboard', BINARY);
  for (const from of Object.keys(ports)) assert.ok(commands.includes(from), `${document} says ${from}`);
  // All at once: a new port may look like an old one.
  const any = new RegExp(Object.keys(ports).map((from) => from.replace('$', '\\$')).join('|'), 'g');
  commands = commands.replace(any, (from) => ports[from]);
  const dir = await privateFolder();
  await mkdir(join(dir, 'deploy/haproxy'), { recursive: true });
  await copyFile(join(root, 'deploy/haproxy/haproxy.cfg'), join(dir, 'deploy/haproxy/haproxy.cfg'));
  // A group of its own, so that all that the commands started can be ended, and nothing else.
  const shell = spawn('bash', ['-c', `${commands}\nwait`], {
    cwd: dir,
    detached: true,
    stdio: 'ignore',
    env: withoutSettings(process.env),
  });
  const gone = once(shell, 'close');
  t.after(async () => {
    // Where a command failed there may be no group any more, but still a Redis.
    if (shell.exitCode === null) process.kill(-shell.pid, 'SIGKILL');
    await gone;
    const redis = await readFile(join(dir, 'redis.pid'), 'utf8').catch(() => '');
    if (redis) process.kill(Number(redis), 'SIGKILL');
    await rm(dir, { recursive: true, force: true, maxRetries: 5 });
  });
}

const ready = (port) =>
  eventually(async () => (await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => ({}))).ok, 'a node is ready', 20_000);

async function ports(count) {
  const all = [];
  for (let n = 0; n < count; n += 1) all.push(await freePort());
  return all;
}

test('two nodes on one Redis', async (t) => {
  const [redis, one, other, oneAdmin, otherAdmin] = await ports(5);
  await run(t, 'docs/guides/redis.md', '# Many nodes', {
    6380: `${redis}`, 3001: `${one}`, 3002: `${other}`, 9301: `${oneAdmin}`, 9302: `${otherAdmin}`,
  });
  await Promise.all([oneAdmin, otherAdmin].map(ready));
  await assertCallsWork(t, { url: `http://127.0.0.1:${one}` });
});

test('three nodes behind HAProxy', async (t) => {
  const [redis, balancer, ...rest] = await ports(8);
  const [nodes, admins] = [rest.slice(0, 3), rest.slice(3)];
  const chosen = (of) => '$(echo ' + of.join(' ') + ' | cut -d" " -f$n)';
  const env = [`BALANCER_LISTEN=127.0.0.1:${balancer}`];
  nodes.forEach((port, n) => env.push(`NODE_${n + 1}=127.0.0.1:${port}`, `NODE_${n + 1}_ADMIN=${admins[n]}`));
  await run(t, 'README.md', '## Three nodes behind HAProxy', {
    6379: `${redis}`, '300$n': chosen(nodes), '930$n': chosen(admins), 'haproxy -f': `${env.join(' ')} haproxy -f`,
  });
  await Promise.all(admins.map(ready));
  const url = `http://127.0.0.1:${balancer}`;
  await eventually(async () => (await fetch(url).catch(() => ({}))).ok, 'the balancer serves');
  await assertCallsWork(t, { url });
});
