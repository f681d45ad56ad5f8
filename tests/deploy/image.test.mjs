// deploy/Dockerfile, checked without a container engine.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';
import { dockerfile, filesUnder, fromVenv, path, read, ROOT, succeed } from '../support/deployment.mjs';

const image = dockerfile();
const sources = image.all('COPY').filter((rest) => !rest.includes('--from')).flatMap((rest) => rest.split(' ').slice(0, -1));

test('hadolint has nothing to say', async () => {
  await succeed(fromVenv('hadolint'), ['--failure-threshold', 'style', path('deploy/Dockerfile')]);
});

test('what is copied is what is let in, and is there', () => {
  const letIn = [...read('.dockerignore').matchAll(/^!(.+)$/gm)].map(([, name]) => name);
  assert.match(read('.dockerignore'), /^\*$/m, 'all else is left out');
  assert.deepEqual([...sources].sort(), letIn.sort());
  for (const name of sources) assert.ok(existsSync(path(name)), name);
});

test('whatever the code takes in when it is compiled is copied', () => {
  const missing = [];
  for (const file of filesUnder('src').filter((name) => name.endsWith('.rs'))) {
    const beside = [...read(file).matchAll(/include_(?:str|bytes)!\("([^"]+)"\)/g)].map(([, name]) => join(dirname(file), name));
    const fromRoot = [...read(file).matchAll(/(?:migrate!\(|folder = )"([^"]+)"/g)].map(([, name]) => name);
    // Golden files are for unit tests, which the image does not contain.
    const needed = [...beside, ...fromRoot].map((name) => relative(ROOT, path(name))).filter((name) => !name.startsWith('tests/'));
    missing.push(...needed.filter((name) => !sources.some((source) => name === source || name.startsWith(`${source}/`))));
  }
  assert.deepEqual(missing, []);
});

test('there is a file for each bench that Cargo.toml names: cargo refuses to build without', () => {
  const benches = [...read('Cargo.toml').matchAll(/^\[\[bench\]\]\nname = "(.+)"(?:\npath = "(.+)")?$/gm)].map(([, name, path]) => path ?? `benches/${name}.rs`);
  const made = image.all('RUN').join(' ').split(/\s+/);
  assert.deepEqual(benches.filter((name) => !made.includes(name)), []);
});

test('it is built with a Rust that Cargo.toml allows, on the Debian that it runs on', () => {
  const [build, run] = image.all('FROM');
  const [, wanted] = /^rust-version = "(.+)"$/m.exec(read('Cargo.toml'));
  const [, used, debian] = /^rust:(\d+\.\d+)\.\d+-slim-(\w+) AS build$/.exec(build);
  assert.ok(Number(used.split('.')[1]) >= Number(wanted.split('.')[1]), `${used} is older than ${wanted}`);
  assert.match(run, new RegExp(`^debian:${debian}-`));
});

test('it runs as a number that is not root, and brings nothing to build with', () => {
  assert.deepEqual(image.all('USER', image.last), ['65532:65532']);
  assert.ok(!/apt-get|apk /.test(image.all('RUN', image.last).join('\n')));
});

test('its health check tells ready from not ready and from dead', async (t) => {
  const [, command] = /CMD (\[.*\])$/.exec(image.all('HEALTHCHECK')[0]);
  const [program, ...args] = JSON.parse(command);
  let status = 200;
  const asked = [];
  const server = createServer((request, response) => {
    asked.push(request.url);
    response.writeHead(status).end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const { port } = server.address();
  const admin = image.environment.SWITCHBOARD_ADMIN_LISTEN.split(':')[1];
  const here = args.map((arg) => arg.replace(`/127.0.0.1/${admin}`, `/127.0.0.1/${port}`));
  assert.notDeepEqual(here, args, 'it asks the admin port');
  const check = () => new Promise((resolve) => execFile(program, here, { timeout: 3_000 }, (error) => resolve(error === null)));
  assert.equal(await check(), true);
  status = 503;
  assert.equal(await check(), false);
  assert.deepEqual(asked, ['/readyz', '/readyz']);
  server.close();
  await once(server, 'close');
  assert.equal(await check(), false);
});
