// Checks and waits shared by all tests.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';

/** The longest wait for an expected event. Generous, because a passing test never waits for so long. */
export const DEADLINE_MS = 10_000;

/** A unique name, so that tests can share a server. */
export function someone(name) {
  return `${name}-${randomBytes(4).toString('hex')}`;
}

/** Checks that the object has exactly the expected fields. An expected value may be a predicate. */
export function assertShape(actual, expected, what = 'object') {
  assert.ok(actual !== null && typeof actual === 'object', `${what} is ${JSON.stringify(actual)}, not an object`);
  assert.deepEqual(Object.keys(actual).sort(), Object.keys(expected).sort(), `fields of ${what}: ${JSON.stringify(actual)}`);
  for (const [field, value] of Object.entries(expected)) {
    if (typeof value === 'function') {
      assert.ok(value(actual[field]), `${what}: field ${field} is wrong: ${JSON.stringify(actual[field])}`);
    } else {
      assert.deepEqual(actual[field], value, `${what}: field ${field}`);
    }
  }
}

/** A time in Unix milliseconds, about now. */
export const isNow = (value) => Number.isInteger(value) && Math.abs(value - Date.now()) < 60_000;

/** A time in Unix milliseconds, `ms` from now, with a tolerance. */
export const isIn = (ms) => (value) => Number.isInteger(value) && Math.abs(value - Date.now() - ms) < Math.max(3_000, ms / 5);

export const isText = (value) => typeof value === 'string' && value.length > 0;

/** Checks a negative ack: the error's type and, if given, words of its message. */
export function assertRefused(answer, type, { mentions = [], ...fields } = {}) {
  assert.ok(answer && answer.ok === false, `expected ${type}, got ${JSON.stringify(answer)}`);
  assert.deepEqual(Object.keys(answer).sort(), ['error', 'ok'], `fields of a refusal: ${JSON.stringify(answer)}`);
  assertError(answer.error, type, { mentions, ...fields });
}

/** Checks the payload of `call:error`, which negative acks contain, too. */
export function assertError(error, type, { mentions = [], ...fields } = {}) {
  const said = JSON.stringify(error);
  assert.equal(error?.type, type, `expected ${type}, got ${said}`);
  assert.ok(isText(error.message), `an error says why in words: ${said}`);
  for (const word of [mentions].flat()) {
    assert.ok(error.message.includes(word), `the message should mention ${word}: ${said}`);
  }
  for (const [field, value] of Object.entries(fields)) assert.deepEqual(error[field], value, `${field} of ${said}`);
  const known = ['type', 'message', 'toUserId', 'event', 'callId', 'retryAfterMs'];
  assert.deepEqual(Object.keys(error).filter((field) => !known.includes(field)), [], `unknown fields in ${said}`);
}

/** Repeats `probe` until it returns a true value, for work that the server does in its own time. */
export async function eventually(probe, what, within = DEADLINE_MS) {
  const end = Date.now() + within;
  for (;;) {
    const result = await probe();
    if (result) return result;
    if (Date.now() > end) assert.fail(`not within ${within} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** The promise's result, or a readable failure after the deadline. */
export async function within(ms, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
