// `make test`: runs each level of the tests, shows a line for each, the failures in full, and a summary. The whole
// output is in target/test.log.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const LOG = 'target/test.log';
const LEVELS = process.argv.length > 2 ? process.argv.slice(2) : ['rust', 'docs', 'clients', 'api', 'cluster', 'browser', 'deploy'];
/** Shown of a level that fails without a report of its failures. */
const LAST_LINES = 60;

/** How many tests a level ran, by the reports of cargo and of Node. */
export function countsOf(output) {
  const sum = (pattern) => [...output.matchAll(pattern)].reduce((total, [, count]) => total + Number(count), 0);
  return {
    passed: sum(/^test result: .*? (\d+) passed/gm) + sum(/^ℹ pass (\d+)$/gm),
    failed: sum(/^test result: .*? (\d+) failed/gm) + sum(/^ℹ fail (\d+)$/gm) + sum(/^ℹ cancelled (\d+)$/gm),
    skipped: sum(/^test result: .*? (\d+) ignored/gm) + sum(/^ℹ skipped (\d+)$/gm),
  };
}

/** The reports of failures in a level's output, in full; its last lines if there is none. */
export function failuresOf(output) {
  const cargo = [...output.matchAll(/^failures:\n\n(----[\s\S]*?)\nfailures:$/gm)].map(([, report]) => report);
  const node = [...output.matchAll(/^✖ failing tests:\n([\s\S]*?)(?=^make\b|(?![\s\S]))/gm)].map(([, report]) => report);
  const compiler = [...output.matchAll(/^error(?:\[E\d+\])?: [\s\S]*?(?=^$)/gm)].map(([report]) => report);
  const reports = [...cargo, ...node, ...compiler];
  return reports.length > 0 ? reports.join('\n') : output.trimEnd().split('\n').slice(-LAST_LINES).join('\n');
}

async function run(level, log) {
  const started = Date.now();
  process.stdout.write(`${level.padEnd(8)} `);
  log.write(`\n==== make test-${level}\n`);
  const make = spawn('make', ['--no-print-directory', `test-${level}`], { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [make.stdout, make.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
      log.write(text);
    });
  }
  const [code] = await once(make, 'close');
  const { passed, failed, skipped } = countsOf(output);
  const seconds = Math.round((Date.now() - started) / 1000);
  const counts = [passed && `${passed} passed`, failed && `${failed} failed`, skipped && `${skipped} skipped`].filter(Boolean);
  console.log(`${(code === 0 ? 'ok' : 'FAILED').padEnd(7)} ${counts.join(', ').padEnd(34)} ${seconds} s`);
  if (code !== 0) console.log(`\n${failuresOf(output)}\n`);
  return { level, code, passed, failed };
}

async function main() {
  mkdirSync(new URL('../target', import.meta.url), { recursive: true });
  const log = createWriteStream(new URL(`../${LOG}`, import.meta.url));
  console.log(`The full output is in ${LOG}.\n`);
  const results = [];
  for (const level of LEVELS) results.push(await run(level, log));
  const bad = results.filter(({ code }) => code !== 0);
  const passed = results.reduce((sum, level) => sum + level.passed, 0);
  console.log(bad.length === 0 ? `\nAll tests passed: ${passed}.` : `\nFailed: ${bad.map(({ level }) => level).join(', ')}. See ${LOG}.`);
  log.end();
  process.exitCode = bad.length === 0 ? 0 : 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
