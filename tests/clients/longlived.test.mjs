// A long-lived connection whose client reads everything is never treated as lagging.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { join } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';

const ROUNDS = 50;
/** More events than the bound on waiting packets, if each were counted as waiting forever. */
const EVENTS_A_ROUND = 200;

describe('a connection that is used for long', { concurrency: false }, () => {
  let server;
  before(async () => {
    server = await startServer({ env: { SWITCHBOARD_LIMITS: 'off' } });
  });
  after(() => server.stop());

  for (const transport of ['websocket', 'polling']) {
    test(`stays, on ${transport}`, async (t) => {
      const anna = await join(t, server, { userId: `anna on ${transport}`, transports: [transport] });
      for (let round = 0; round < ROUNDS; round += 1) {
        const asked = Array.from({ length: EVENTS_A_ROUND }, () => anna.socket.emitWithAck('call:sync', {}));
        for (const answer of await Promise.all(asked)) assert.deepEqual(answer, { ok: true, call: null });
      }
      assert.ok(!anna.names.includes('disconnect'));
    });
  }
});
