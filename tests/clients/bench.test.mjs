// `switchboard bench calls` on a server with limits: a measurement that must run into them is refused at once.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { ONE_NODE, runToExit, startServer, USUAL_LIMITS } from '../support/server.mjs';

const usual = await startServer({ env: USUAL_LIMITS });
after(() => usual.stop());

const bench = (server, ...args) => runToExit(['bench', 'calls', '--url', server.url.replace('http', 'ws'), '--candidates', '0', ...args]);
const SHORT = ['--duration', '1s', '--warm-up', '0s'];

describe('bench calls on a server with the limits that it has by default', ONE_NODE, () => {
  for (const [name, args, planned] of [
    ['its own defaults', [], 'as many as it can'],
    ['many pairs, as fast as they can', ['--pairs', '64'], 'as many as it can'],
    ['too few pairs for its rate', ['--pairs', '2', '--rate', '4'], '120'],
  ]) {
    test(`${name}: says so before it begins`, async () => {
      const began = Date.now();
      // It would take a minute otherwise.
      const { code, stdout, stderr } = await bench(usual, ...args, '--duration', '60s');
      assert.equal(code, 1, stderr);
      assert.ok(Date.now() - began < 8_000, `it took ${Date.now() - began} ms`);
      assert.equal(stdout, '', 'nothing was measured');
      assert.match(stderr, /fewer call attempts of a user than this measurement makes/);
      assert.ok(stderr.includes(`(${planned} a minute)`), stderr);
      assert.match(stderr, /start it with `--limits off`, or say a `--rate` and more `--pairs`, at most 30 calls a minute for each pair/);
    });
  }

  test('enough pairs for the rate: it measures', async () => {
    const { code, stdout, stderr } = await bench(usual, ...SHORT, '--pairs', '8', '--rate', '4');
    assert.equal(code, 0, stderr);
    assert.match(stdout, /calls/);
  });
});

test('bench calls on a server without limits measures with its own defaults', ONE_NODE, async (t) => {
  const free = await startServer({ args: ['--limits', 'off'], env: USUAL_LIMITS });
  t.after(() => free.stop());
  const { code, stdout, stderr } = await bench(free, ...SHORT);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /calls/);
});
