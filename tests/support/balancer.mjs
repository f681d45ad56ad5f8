// HAProxy in front of three nodes, with the file that ships.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { eventually } from './check.mjs';
import { freePort } from './cluster.mjs';

const SETTINGS = fileURLToPath(new URL('../../deploy/haproxy/haproxy.cfg', import.meta.url));

/** A balancer that clients can be pointed at as if it were a server. */
export async function startBalancer(nodes) {
  const port = await freePort();
  const addresses = nodes.flatMap((node, index) => [
    [`NODE_${index + 1}`, `127.0.0.1:${node.port}`],
    [`NODE_${index + 1}_ADMIN`, new URL(node.adminUrl).port],
  ]);
  const env = { ...process.env, BALANCER_LISTEN: `127.0.0.1:${port}`, ...Object.fromEntries(addresses) };
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'haproxy', '-db', '-f', SETTINGS], { env, stdio: 'ignore' });
  const gone = once(child, 'close');
  const url = `http://127.0.0.1:${port}`;
  await eventually(async () => (await fetch(url).catch(() => ({}))).ok, 'the balancer serves');
  return {
    url,
    port,
    async stop() {
      child.kill('SIGKILL');
      await gone;
    },
  };
}
