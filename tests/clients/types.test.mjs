// web/protocol.d.ts: TypeScript's view of the socket and the HTTP API.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { FILE, typesOf } from '../../scripts/types.mjs';
import { documentOf } from '../support/schemas.mjs';
import { startServer } from '../support/server.mjs';

test('the types are those of the documents', async (t) => {
  const server = await startServer();
  t.after(() => server.stop());
  const types = typesOf(await documentOf(server, '/openapi.json'), await documentOf(server, '/asyncapi.json'));
  assert.equal(await readFile(FILE, 'utf8'), types, '`make types` writes the file anew');
  const served = await fetch(`${server.url}/protocol.d.ts`);
  assert.equal(await served.text(), types);
});

test('a good client compiles, and mistakes do not', async () => {
  const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
  const folder = fileURLToPath(new URL('../types', import.meta.url));
  const said = await new Promise((resolve) => execFile(process.execPath, [tsc, '-p', folder], (_, stdout, stderr) => resolve(stdout + stderr)));
  assert.equal(said, '');
});
