// deploy/nginx/switchboard.conf, used by a real nginx with TLS in front of real nodes.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { Agent, request } from 'node:https';
import { join as joinPath } from 'node:path';
import { describe, test } from 'node:test';
import { activeCall, assertTalking } from '../support/calls.mjs';
import { makeCertificate } from '../support/certificate.mjs';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { freePort, startCluster } from '../support/cluster.mjs';
import { read } from '../support/deployment.mjs';
import { scrape } from '../support/metrics.mjs';
import { folderFor, running } from '../support/prometheus.mjs';

const SETTINGS = read('deploy/nginx/switchboard.conf');

/** An nginx with the shipped file, in front of servers at these ports of loopback. Clients use it like a server. */
async function startNginx(t, ports) {
  const folder = await folderFor(t);
  const { authority, certificate, key } = await makeCertificate(folder);
  const port = await freePort();
  const nodes = ports.map((node) => `    server 127.0.0.1:${node} max_fails=1 fail_timeout=5s;\n`).join('');
  const replaced = [
    [/( +server 10\.0\.0\.\d+:3000 max_fails=1 fail_timeout=5s;\n)+/, nodes],
    ['listen 443 ssl', `listen 127.0.0.1:${port} ssl`],
    ['server_name calls.example.com', 'server_name 127.0.0.1'],
    ['/etc/nginx/tls/fullchain.pem', certificate],
    ['/etc/nginx/tls/privkey.pem', key],
  ];
  let settings = SETTINGS;
  for (const [from, to] of replaced) {
    const next = settings.replace(from, to);
    assert.notEqual(next, settings, `the file has ${from}`);
    settings = next;
  }
  await mkdir(joinPath(folder, 'conf.d'));
  await writeFile(joinPath(folder, 'conf.d/switchboard.conf'), settings);
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/${name};`);
  const main = [
    // One process, which ends with the test.
    'master_process off;', `pid ${folder}/pid;`, 'error_log stderr;', 'events { worker_connections 512; }',
    `http { access_log off; ${temporary.join(' ')} include ${folder}/conf.d/*.conf; }`,
  ];
  if (process.getuid() === 0) main.unshift('user root;');
  await writeFile(joinPath(folder, 'nginx.conf'), main.join('\n'));
  const run = running(t, 'nginx', ['-p', folder, '-e', 'stderr', '-c', joinPath(folder, 'nginx.conf'), '-g', 'daemon off;']);
  const ca = await readFile(authority);
  const nginx = { url: `https://127.0.0.1:${port}`, port, ca, run };
  await eventually(async () => (await get(nginx, '/')).status > 0, 'nginx listens').catch((error) => assert.fail(`${error.message}\n${run.output}`));
  return nginx;
}

/** A request of its own connection, with these headers. */
function get({ url, ca }, path, headers = {}) {
  return new Promise((resolve) => {
    const asked = request(`${url}${path}`, { ca, headers, agent: new Agent({ keepAlive: false }) }, async (response) => {
      let body = '';
      for await (const chunk of response) body += chunk;
      resolve({ status: response.statusCode, headers: response.headers, body });
    });
    asked.on('error', (error) => resolve({ status: 0, body: error.message }));
    asked.end();
  });
}

const cookieOf = ({ headers }) => headers['set-cookie']?.[0].split(';')[0];

/** Options of a client that keeps cookies, as browsers do, on a page of this address. */
const browser = (nginx, transports) => ({ ca: nginx.ca, transports, withCredentials: true, extraHeaders: { origin: nginx.url } });

async function startAll(t) {
  const cluster = await startCluster(2, { env: { SWITCHBOARD_TRUSTED_PROXIES: '127.0.0.1/32' } });
  t.after(() => cluster.stop());
  return { cluster, nginx: await startNginx(t, cluster.nodes.map(({ port }) => port)) };
}

describe('nginx', () => {
  test('gives the page, and carries calls of polling clients and of those that upgrade', async (t) => {
    const { cluster, nginx } = await startAll(t);
    const page = await get(nginx, '/');
    assert.equal(page.status, 200);
    assert.match(page.body, /<html/);
    assert.match(page.headers['set-cookie'][0], /^SIO_NODE=[0-9a-f]{32}; Path=\/; Secure; HttpOnly; SameSite=Lax$/);
    const name = { polling: ['polling'], upgrade: ['polling', 'websocket'], websocket: ['websocket'] };
    for (const transports of Object.values(name)) {
      const { caller, callee } = await activeCall(t, nginx, { caller: browser(nginx, transports), callee: browser(nginx, transports) });
      await assertTalking(caller, callee);
      for (const { socket } of [caller, callee]) await eventually(() => socket.io.engine.transport.name === transports.at(-1), `it is on ${transports.at(-1)}`);
      await assertTalking(caller, callee);
      await caller.ok('call:end', { toUserId: callee.userId });
      await callee.next('call:ended');
    }
    // Twenty clients that are random on two nodes: all on one is one chance in 500,000.
    await Promise.all(Array.from({ length: 20 }, () => join(t, nginx, { userId: someone('carol'), ...browser(nginx, ['polling']) })));
    for (const node of cluster.nodes) assert.ok((await scrape(node)).value('switchboard_sockets') > 0, 'both nodes have clients');
  });

  test('a client whose node dies goes on at the other one, in its call', async (t) => {
    const { cluster, nginx } = await startAll(t);
    const again = { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 200 };
    const { caller, callee } = await activeCall(t, nginx, {
      caller: { deviceId: 'a', ...browser(nginx, ['polling', 'websocket']), ...again },
      callee: { deviceId: 'b', ...browser(nginx, ['polling', 'websocket']), ...again },
    });
    // The node that has at least one of the two.
    const sockets = await Promise.all(cluster.nodes.map(async (node) => (await scrape(node)).value('switchboard_sockets')));
    const number = Math.max(...sockets);
    const lost = () => [...caller.names, ...callee.names].filter((event) => event === 'disconnect').length;
    await cluster.nodes[sockets.indexOf(number)].kill();
    await eventually(() => lost() === number, `${number} of them lose their connection`);
    await eventually(() => caller.socket.connected && callee.socket.connected, 'both are connected again');
    await assertTalking(caller, callee);
    assert.ok((await get(nginx, '/')).status === 200);
    assert.deepEqual([...caller.names, ...callee.names].filter((event) => event === 'call:ended'), []);
  });

  test('replaces what a client says about itself', async (t) => {
    const echo = createServer((asked, response) => response.end(JSON.stringify(asked.headers)));
    echo.listen(0, '127.0.0.1');
    await once(echo, 'listening');
    t.after(() => {
      echo.close();
      echo.closeAllConnections();
    });
    const nginx = await startNginx(t, [echo.address().port]);
    const lies = { 'x-forwarded-for': '203.0.113.7', 'x-forwarded-host': 'evil.example', 'x-forwarded-proto': 'http', forwarded: 'for=203.0.113.7' };
    const first = await get(nginx, '/', lies);
    const host = `127.0.0.1:${nginx.port}`;
    const { 'x-forwarded-for': address, 'x-forwarded-host': named, 'x-forwarded-proto': scheme, forwarded, host: asked } = JSON.parse(first.body);
    assert.deepEqual({ address, named, scheme, forwarded, asked }, { address: '127.0.0.1', named: host, scheme: 'https', forwarded: undefined, asked: host });
    // The cookie is given once, and one that is not ours is replaced.
    assert.equal(cookieOf(await get(nginx, '/', { cookie: cookieOf(first) })), undefined);
    assert.match(cookieOf(await get(nginx, '/', { cookie: 'SIO_NODE=node1' })), /^SIO_NODE=[0-9a-f]{32}$/);
  });
});
