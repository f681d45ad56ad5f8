// Checks that `make test` counts the tests that ran, and shows failures in full.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { countsOf, failuresOf } from '../../scripts/test.mjs';
import { privateFolder } from '../support/server.mjs';

test('failures of Node are counted and shown whole', async (t) => {
  const dir = await privateFolder();
  t.after(() => rm(dir, { recursive: true, force: true }));
  const file = join(dir, 'some.test.mjs');
  await writeFile(
    file,
    `import { test } from 'node:test';
     test('good', () => {});
     test('bad', () => { throw new Error('first reason'); });
     test('worse', () => { throw new Error('second reason'); });
     test('later', { skip: true }, () => {});`,
  );
  const env = { PATH: process.env.PATH };
  const run = await promisify(execFile)(process.execPath, ['--test', '--test-reporter=spec', file], { env }).catch((error) => error);
  const output = `${run.stdout}make: *** [Makefile:1: test-docs] Error 1\n`;
  assert.deepEqual(countsOf(output), { passed: 1, failed: 2, skipped: 1 });
  const shown = failuresOf(output);
  for (const words of ['first reason', 'second reason']) assert.ok(shown.includes(words), shown);
  assert.ok(!shown.includes('good') && !shown.includes('make'), shown);
});

test('failures of cargo are counted and shown whole', () => {
  const output = [
    'running 2 tests', 'test a ... ok', 'test b ... FAILED', '', 'failures:', '', '---- b stdout ----', '', 'the reason', '', '', 'failures:', '    b', '',
    'test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s', '',
  ].join('\n');
  assert.deepEqual(countsOf(output), { passed: 1, failed: 1, skipped: 3 });
  assert.match(failuresOf(output), /^---- b stdout ----\n\nthe reason/);
});
