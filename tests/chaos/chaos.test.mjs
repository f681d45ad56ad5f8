// The shorter part of `make chaos`: some faults once, fewer clients, and the same zeros.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, readFile, readdir } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { eventually } from '../support/check.mjs';
import { BINARY, privateFolder } from '../support/server.mjs';
import { playGroup } from './group.mjs';

const FEW = { rounds: 1, talking: 15, dialling: 6, everyMs: 400 };

const PART = {
  single: [
    'one node cut off from Redis',
    "Postgres' disk full",
    'mixed: a node killed while Redis stands still',
    'Redis restarted, empty',
  ],
  sentinel: ['Redis fails over'],
  cluster: ['the slot of all state moved'],
};

describe('faults under load', { concurrency: true }, () => {
  for (const [kind, names] of Object.entries(PART)) {
    test(`Redis: ${kind}`, async (t) => {
      const chosen = (name) => names.some((part) => name.startsWith(part));
      const { results, wrong, ledger } = await playGroup(kind, { ...FEW, chosen });
      for (const { fault, missing } of results) if (missing) t.diagnostic(`not run: ${fault.name}: it needs ${missing}`);
      assert.equal(results.length, names.length, 'each is played');
      assert.deepEqual([...wrong, ...results.flatMap((result) => result.wrong)], []);
      assert.ok(ledger.calls.size > 30 && ledger.messages > 100, 'it was under load');
    });
  }
});

test('a run that is told to stop leaves no process, no disk and no folder behind', async (t) => {
  const dir = await privateFolder();
  // Postgres runs as nobody.
  await chmod(dir, 0o755);
  const env = { ...process.env, TMPDIR: dir, SWITCHBOARD_BIN: BINARY, ONLY: 'nothing', TALKING: '2', DIALLING: '2' };
  const run = spawn(process.execPath, [fileURLToPath(new URL('run.mjs', import.meta.url))], { env, stdio: 'ignore' });
  t.after(() => run.kill('SIGKILL'));
  const gone = once(run, 'close');
  const isBalancerThere = async () => (await commandsOf(run.pid)).some((command) => command.startsWith('haproxy'));
  await eventually(isBalancerThere, 'the last part is started', 30_000);
  const disks = async () => (await readFile('/proc/mounts', 'utf8')).split('\n').filter((line) => line.includes(dir));
  const children = await childrenOf(run.pid);
  run.kill('SIGTERM');
  assert.deepEqual(await gone, [143, null]);
  assert.deepEqual(await disks(), []);
  const areGone = async () => (await Promise.all(children.map(commandOf))).every((command) => !command);
  await eventually(areGone, 'all that was started is gone');
  assert.deepEqual(await readdir(dir), []);
});

async function childrenOf(pid) {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return text.split(' ').map(Number).filter(Boolean);
}

const commandOf = (pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
const commandsOf = async (pid) => Promise.all((await childrenOf(pid)).map(commandOf));
