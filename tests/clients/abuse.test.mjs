// A short version of each attack of `make abuse`: while it lasts, memory stays within its bound and other calls
// work.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { assertCallsWork } from '../support/calls.mjs';
import { ATTACKS, begin } from '../support/attacks.mjs';
import { residentBytes } from '../support/memory.mjs';
import { scrape } from '../support/metrics.mjs';
import { startServer } from '../support/server.mjs';

const MIB = 1024 * 1024;
const LASTS_MS = 1_500;

/** The number of attackers, and the most memory that the server may gain: generous, for a debug build. */
const SMALL = {
  'connections that send no byte': [1_000, 40],
  'requests that trickle in': [500, 40],
  'sockets that join nothing': [500, 60],
  'sockets that never identify': [500, 60],
  'sockets that vanish without a word': [300, 60],
  'sessions on polling, never used': [1_000, 100],
  'frames of terabytes': [50, 40],
  'frames just under the bound, all the time': [4, 60],
  'frames that never end': [100, 80],
  'small events, as fast as they go': [4, 60],
  'joining again and again on one connection': [2, 60],
  'websockets that ask and do not read': [10, 100],
  'sessions on polling that are sent to and do not fetch': [4, 30],
  'bodies that trickle in, many to one session': [200, 30],
  'many polls on one session': [50, 60],
  'requests whose answers nobody reads': [50, 80],
};

describe('abuse', { concurrency: false }, () => {
  let server;
  before(async () => {
    // With limits, the server would refuse most of an attack, because it comes from one address here.
    server = await startServer({ env: { SWITCHBOARD_LIMITS: 'off' } });
  });
  after(() => server.stop());

  test('each attack has a short version', () => {
    assert.deepEqual(Object.keys(SMALL), Object.keys(ATTACKS));
  });

  for (const [name, [number, bound]] of Object.entries(SMALL)) {
    test(name, async (t) => {
      const quiet = await residentBytes(server);
      let peak = quiet;
      const sampling = setInterval(async () => (peak = Math.max(peak, await residentBytes(server))), 50);
      t.after(() => clearInterval(sampling));
      const attack = begin(name, server.port, number);
      t.after(() => attack.stop());
      const until = Date.now() + LASTS_MS;
      // The attack begins before the first call and lasts until the last one has ended.
      while (attack.crowd.outcome.connections < number && !attack.crowd.outcome[200] && Date.now() < until) await pause(20);
      do await assertCallsWork(t, server);
      while (Date.now() < until);
      const outcome = await attack.stop();
      const grown = Math.round((peak - quiet) / MIB);
      t.diagnostic(`grew by ${grown} MiB; ${JSON.stringify(outcome)}`);
      assert.ok(grown <= bound, `grew by ${grown} MiB, more than ${bound}: ${JSON.stringify(outcome)}`);
    });
  }

  test('each bound that was reached is counted', async () => {
    const counted = await scrape(server);
    assert.ok(counted.value('switchboard_limits_hit_total', { limit: 'client_queue' }) > 0, 'who does not read or fetch');
    assert.ok(counted.value('switchboard_limits_hit_total', { limit: 'posts' }) > 0, 'bodies side by side');
  });
});
