// Runs the shell blocks of the pages below in one shell, one after the other, as a reader would.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { assertCallsWork } from '../support/calls.mjs';
import { eventually, within } from '../support/check.mjs';
import { freePort } from '../support/cluster.mjs';
import { path } from '../support/deployment.mjs';
import { startPostgres } from '../support/postgres.mjs';
import { BINARY, privateFolder, withoutSettings } from '../support/server.mjs';
import { blocksOf, page, PAGES } from './pages.mjs';

/** In a reader's order: later pages use programs that earlier ones have put on the PATH. */
const RUN = [
  'README.md',
  'docs/getting-started.md',
  'docs/guides/tokens.md',
  'docs/guides/turn.md',
  'docs/guides/postgres.md',
  'docs/reference/http.md',
];
/** Their blocks need a Kubernetes cluster, a container engine or an incident. */
const NOT_RUN = ['deploy/helm/switchboard/README.md', 'docs/guides/kubernetes.md', 'docs/guides/compose.md', 'docs/operations/runbook.md'];

const BLOCK_DEADLINE_MS = 60_000;

/** The ports in the pages, each replaced by a free one. */
const PORTS = [3000, 3001, 3002, 3003, 9300, 9301, 9302, 9303, 6390, 3478];

class Shell {
  stdout = '';
  stderr = '';
  #marks = 0;

  constructor(dir, env) {
    // A process group of its own, so that exactly the processes of the commands can be ended.
    this.bash = spawn('bash', ['--norc'], { cwd: dir, env, detached: true });
    this.gone = once(this.bash, 'close');
    for (const stream of ['stdout', 'stderr']) this.bash[stream].setEncoding('utf8').on('data', (text) => (this[stream] += text));
  }

  /** Runs a block; returns what it wrote to stdout. `meanwhile` runs until a command that stays in front has ended. */
  async run(block, meanwhile) {
    const from = this.stdout.length;
    const mark = `<<${(this.#marks += 1)}>>`;
    this.bash.stdin.write(`${block}\necho '${mark}'\n`);
    await meanwhile?.();
    await within(BLOCK_DEADLINE_MS, eventually(() => this.stdout.includes(mark), `this ends:\n${block}`, BLOCK_DEADLINE_MS), block);
    return this.stdout.slice(from, this.stdout.indexOf(mark));
  }

  get children() {
    const { pid } = this.bash;
    return execFileSync('cat', [`/proc/${pid}/task/${pid}/children`], { encoding: 'utf8' }).trim().split(' ').filter(Boolean).map(Number);
  }

  async end() {
    if (this.bash.exitCode === null) process.kill(-this.bash.pid, 'SIGKILL');
    await this.gone;
  }
}

test('every page with shell blocks is run, or known not to be', () => {
  const pages = PAGES.filter((one) => blocksOf(one).some(({ language }) => language === 'sh')).map(({ name }) => name);
  assert.deepEqual(pages.filter((name) => !NOT_RUN.includes(name)).sort(), [...RUN].sort());
  for (const name of NOT_RUN) assert.ok(page(name), name);
});

test('all blocks work, one after the other in one shell', async (t) => {
  const dir = await privateFolder();
  t.after(() => rm(dir, { recursive: true, force: true, maxRetries: 5 }));
  await mkdir(join(dir, 'target/release'), { recursive: true });
  await symlink(BINARY, join(dir, 'target/release/switchboard'));
  await symlink(path('deploy'), join(dir, 'deploy'));
  const postgres = await startPostgres({ schema: false });
  t.after(() => postgres.stop());

  const ports = Object.fromEntries(await Promise.all(PORTS.map(async (port) => [port, await freePort()])));
  const at = (port) => `127.0.0.1:${ports[port]}`;
  const each = (base) => `$(echo ${[1, 2, 3].map((n) => ports[base + n]).join(' ')} | cut -d" " -f$n)`;
  const replaced = (text) =>
    text
      .replaceAll('300$n', each(3000))
      .replaceAll('930$n', each(9300))
      .replaceAll(/\b(3000|6390|3478)\b/g, (port) => ports[port])
      .replaceAll('/var/run/postgresql', postgres.dir);
  const nodes = [1, 2, 3].flatMap((n) => [[`NODE_${n}`, at(3000 + n)], [`NODE_${n}_ADMIN`, `${ports[9300 + n]}`]]);
  const shell = new Shell(dir, {
    ...withoutSettings(process.env),
    SWITCHBOARD_LISTEN: at(3000),
    SWITCHBOARD_ADMIN_LISTEN: at(9300),
    BALANCER_LISTEN: at(3000),
    ...Object.fromEntries(nodes),
    PGPORT: `${postgres.port}`,
    PGHOST: postgres.dir,
    PGUSER: 'postgres',
  });
  t.after(() => shell.end());
  // The binary and the packages of the tests exist already.
  await shell.run(`cargo() { [ "$*" = 'build --release' ]; }; npm() { ln -sfn '${path('tests/node_modules')}' node_modules; }`);

  const url = `http://${at(3000)}`;
  const isReady = (port) => eventually(async () => (await fetch(`http://${at(port)}/readyz`).catch(() => ({}))).ok, 'it is ready', 20_000);
  const checks = {
    // A server in the foreground, until the reader presses Ctrl-C.
    'target/release/switchboard\n': async () => {
      await isReady(9300);
      await assertCallsWork(t, { url });
      for (const child of shell.children) process.kill(child, 'SIGINT');
    },
  };
  const afterwards = {
    'switchboard &\nserver=': () => isReady(9300),
    'haproxy -f': async () => {
      await Promise.all([9301, 9302, 9303].map(isReady));
      await eventually(async () => (await fetch(url).catch(() => ({}))).ok, 'the balancer serves');
      await assertCallsWork(t, { url });
    },
  };
  const matching = (table, body) => Object.entries(table).find(([words]) => body.includes(words))?.[1];

  const outputs = [];
  for (const name of RUN) {
    let output = '';
    for (const { language, body } of blocksOf(page(name))) {
      if (language === 'js') await writeFile(join(dir, 'target/client/client.mjs'), replaced(body));
      if (language === 'text') assert.ok(output.includes(replaced(body)), `${name} promises\n${body}\nand gives\n${output}${shell.stderr.slice(-2_000)}`);
      if (language !== 'sh') continue;
      output = await shell.run(replaced(body), matching(checks, body));
      await matching(afterwards, body)?.();
      outputs.push(output);
      assert.deepEqual(shell.stderr.match(/^(?:error: .*|.*(?:command not found|No such file|Permission denied|already in use).*)$/gm), null, name);
    }
    // Each page stops all processes that it has started.
    await eventually(() => shell.children.length === 0, `${name} leaves nothing running: ${shell.children}`);
  }
  const said = outputs.join('');
  // The client's call is in the history with its end; a signed-in user has a history of their own; relays have
  // credentials.
  assert.match(said, /"endReason":"completed"/);
  assert.match(said, /\{"calls":\[\],"nextCursor":null\}/);
  assert.match(said, /\?token=[\w-]+\.[\w-]+\.[\w-]+\n/);
  assert.match(said, /"urls":\["turn:127\.0\.0\.1:\d+\?transport=udp"\],"username":"[^"]+"/);
  assert.match(said, /"presence":\{"anna":"offline","ben":"offline"\}/);
});
