// deploy/Dockerfile, checked without a container engine: as much as can be read in it. `make image-check` builds and runs
// the image. Never checked: whether the registry has the base images, and docker's own builder.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { dockerfile, filesUnder, fromVenv, path, read, ROOT, succeed } from '../support/deployment.mjs';
import { BINARY } from '../support/server.mjs';

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

test('it is built with a Rust that Cargo.toml allows, on the Debian whose C library it has', () => {
  const [libraries, build] = image.bases;
  const [, wanted] = /^rust-version = "(.+)"$/m.exec(read('Cargo.toml'));
  const [, used, debian] = /^rust:(\d+\.\d+)\.\d+-slim-(\w+)$/.exec(build);
  assert.ok(Number(used.split('.')[1]) >= Number(wanted.split('.')[1]), `${used} is older than ${wanted}`);
  assert.match(libraries, new RegExp(`^debian:${debian}-`));
});

test('every crate can be compiled with the Rust that Cargo.toml allows', async () => {
  const [, wanted] = /^rust-version = "1\.(\d+)"$/m.exec(read('Cargo.toml'));
  // Its output alone: on the other stream cargo may say that it waits for another one.
  const { stdout } = await promisify(execFile)('cargo', ['metadata', '--locked', '--format-version', '1'], { cwd: ROOT, maxBuffer: 1 << 27 });
  const { packages } = JSON.parse(stdout);
  const minor = ({ rust_version: version }) => Number((version ?? '1.0').split('.')[1]);
  assert.ok(packages.length > 200);
  assert.deepEqual(packages.filter((one) => minor(one) > Number(wanted)).map(({ name, rust_version: version }) => `${name} ${version}`), []);
});

test('it is built with the profile for images', () => {
  assert.match(image.all('RUN').join('\n'), /cargo build --profile dist --locked/);
  assert.match(read('Cargo.toml'), /^\[profile\.dist\]\ninherits = "release"\nlto = "fat"\ncodegen-units = 1$/m);
});

test('a change of a line compiles only what it must: crates and target folder are caches', () => {
  const mounts = (name) => image.all('RUN').filter((line) => line.includes(name)).map((line) => [...line.matchAll(/--mount=type=cache,\S*target=(\S+)/g)].map(([, to]) => to));
  assert.deepEqual(mounts('cargo build'), [['/usr/local/cargo/registry', '/build/target']]);
  assert.deepEqual(mounts('sbom.sh'), [['/usr/local/cargo/registry', '/tools']]);
  // Each architecture has a target folder of its own.
  assert.ok(image.all('RUN').some((line) => line.includes('id=target-$TARGETARCH')));
});

test('it runs as a number that is not root, on nothing but what was put together for it', () => {
  assert.deepEqual(image.all('USER', image.last), ['65532:65532']);
  assert.equal(image.all('FROM').at(-1), 'scratch');
  assert.deepEqual(image.all('RUN', image.last), []);
  assert.deepEqual(image.all('COPY', image.last), ['--from=build /image /']);
});

test('the binary needs no library that is not copied', async () => {
  const needed = [...(await succeed('ldd', [BINARY])).matchAll(/^\s+(\S+)/gm)].map(([, name]) => basename(name)).filter((name) => !name.startsWith('linux-vdso'));
  const copied = image.all('RUN').find((line) => line.includes('libc.so.6'));
  assert.ok(needed.length > 2);
  assert.deepEqual(needed.filter((name) => !copied.includes(name.replace(/^ld-linux-.*$/, 'ld-linux-*.so.*'))), []);
});

test('nothing of it is run by a shell: not the program, not the health check', () => {
  const binary = '/usr/local/bin/switchboard';
  assert.deepEqual(JSON.parse(image.all('ENTRYPOINT')[0]), [binary]);
  assert.equal(image.healthCheck[0], binary);
  assert.ok(image.all('RUN').some((line) => line.includes(`/image${binary}`)));
});

test('scripts/image.sh finds the base images by their names', () => {
  const patterns = [...read('scripts/image.sh').matchAll(/\$\(sed -n 's\/(.*?)\/\\1\/p' deploy\/Dockerfile\)/g)].map(([, pattern]) => pattern);
  const found = patterns.map((pattern) => new RegExp(pattern.replaceAll('\\(', '(').replaceAll('\\)', ')'), 'm').exec(read('deploy/Dockerfile'))?.[1]);
  assert.deepEqual(found, image.bases);
});
