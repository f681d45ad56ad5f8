// The client in the README does what the README says.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { calls } from '../support/http.mjs';
import { startServer } from '../support/server.mjs';

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
  const [row] = await calls(server, 'anna');
  assert.equal(row.endReason, 'completed');
});
