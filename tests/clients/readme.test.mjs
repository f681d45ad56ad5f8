// The client in the README does what the README says.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { eventually } from '../support/check.mjs';
import { calls } from '../support/http.mjs';
import { freePort } from '../support/cluster.mjs';
import { BINARY, privateFolder, startServer } from '../support/server.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));

function block(readme, language) {
  const found = new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, 's').exec(readme);
  assert.ok(found, `the README has a block of ${language}`);
  return found[1];
}

test('the five-minute client', async (t) => {
  const server = await startServer();
  t.after(() => server.stop());
  // Beside the tests, so that it finds socket.io-client.
  const folder = await mkdtemp(join(here, '.readme-'));
  t.after(() => rm(folder, { recursive: true }));
  const readme = await readFile(join(here, '../../README.md'), 'utf8');
  await writeFile(join(folder, 'client.mjs'), block(readme, 'js'));
  const { stdout } = await promisify(execFile)(process.execPath, ['client.mjs'], {
    cwd: folder,
    env: { ...process.env, SWITCHBOARD_URL: server.url },
    timeout: 10_000,
  });
  assert.equal(stdout, block(readme, 'text'));
  const ended = async () => (await calls(server, 'anna')).find(({ endedAt }) => endedAt);
  const row = await eventually(ended, 'the call is in history, with its end');
  assert.equal(row.endReason, 'completed');
});

test('the commands with a token', async (t) => {
  const readme = await readFile(join(here, '../../README.md'), 'utf8');
  const [, commands] = /```sh\n(export SWITCHBOARD_AUTH.*?)```/s.exec(readme) ?? assert.fail('the README has them');
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true }));
  const port = await freePort();
  // The same words, with this binary and a port of its own; what was started ends with the shell.
  const script = `
    cargo() { [ "$1 $2" = "run --release" ] || exit 9; shift 2; [ "$1" = -- ] && shift; exec setpriv --pdeathsig KILL -- '${BINARY}' "$@"; }
    ${commands.replaceAll('127.0.0.1:3000', `127.0.0.1:${port}`)}`;
  const env = { ...process.env, SWITCHBOARD_LISTEN: `127.0.0.1:${port}` };
  delete env.SWITCHBOARD_BIN;
  const { stdout } = await promisify(execFile)('bash', ['-c', `${script}\nkill $!; wait`], { cwd: folder, env, timeout: 30_000 });
  assert.match(stdout, /\{"calls":\[\],"nextCursor":null\}/);
  assert.match(stdout, /\?token=[\w-]+\.[\w-]+\.[\w-]+\n$/);
});
