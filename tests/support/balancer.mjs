// HAProxy in front of three nodes, with the shipped file.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { eventually } from './check.mjs';
import { freePort } from './cluster.mjs';
import { privateFolder } from './server.mjs';

const SETTINGS = fileURLToPath(new URL('../../deploy/haproxy/haproxy.cfg', import.meta.url));

/**
 * A balancer that clients can use like a server. With `reloads` it has a master process that replaces its worker on a
 * signal, as in a service of the system. `rewrite` may change its settings.
 */
export async function startBalancer(nodes, { reloads = false, env: more = {}, rewrite } = {}) {
  const port = await freePort();
  const addresses = nodes.flatMap((node, index) => [
    [`NODE_${index + 1}`, `127.0.0.1:${node.port}`],
    [`NODE_${index + 1}_ADMIN`, new URL(node.adminUrl).port],
  ]);
  const env = { ...process.env, BALANCER_LISTEN: `127.0.0.1:${port}`, ...Object.fromEntries(addresses), ...more };
  const settings = rewrite ? join(await privateFolder(), 'haproxy.cfg') : SETTINGS;
  if (rewrite) await writeFile(settings, rewrite(await readFile(SETTINGS, 'utf8')));
  const mode = reloads ? '-W' : '-db';
  const start = () => {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'haproxy', mode, '-f', settings], { env, stdio: 'ignore' });
    return { child, gone: once(child, 'close') };
  };
  const url = `http://127.0.0.1:${port}`;
  const serves = () => eventually(async () => (await fetch(url).catch(() => ({}))).ok, 'the balancer serves');
  let running = start();
  await serves();
  return {
    url,
    port,
    /** New connections go to a new worker; existing ones stay with the old one. */
    async reload() {
      running.child.kill('SIGUSR2');
      await serves();
    },
    /** Kills the balancer with all connections, and starts it again. */
    async restart() {
      running.child.kill('SIGKILL');
      await running.gone;
      running = start();
      await serves();
    },
    async stop() {
      running.child.kill('SIGKILL');
      await running.gone;
    },
  };
}
