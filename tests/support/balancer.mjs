// HAProxy in front of nodes, sticky by a cookie, as an operator would set it up.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { eventually } from './check.mjs';
import { freePort } from './cluster.mjs';
import { privateFolder } from './server.mjs';

/** A balancer that clients can be pointed at as if it were a server. */
export async function startBalancer(nodes) {
  const dir = await privateFolder();
  const port = await freePort();
  const settings = join(dir, 'haproxy.cfg');
  await writeFile(settings, configuration(port, nodes));
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'haproxy', '-db', '-f', settings], { stdio: 'ignore' });
  const gone = once(child, 'close');
  const url = `http://127.0.0.1:${port}`;
  await eventually(async () => (await fetch(url).catch(() => ({}))).ok, 'the balancer serves');
  return {
    url,
    port,
    async stop() {
      child.kill('SIGKILL');
      await gone;
      await rm(dir, { recursive: true, force: true });
    },
  };
}

const configuration = (port, nodes) => `
global
    maxconn 2000
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    retries 3
    option redispatch 1
frontend calls
    bind 127.0.0.1:${port}
    default_backend nodes
backend nodes
    balance roundrobin
    cookie SIO_NODE insert indirect nocache httponly
    option httpchk GET /
    default-server check inter 200ms fall 1 rise 1
${nodes.map((node, index) => `    server node${index} 127.0.0.1:${node.port} cookie node${index}`).join('\n')}
`;
