// The shorter part of `make chaos`: some faults once, fewer clients, and the same zeros.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
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
