// The HTTP API of the server: call history.

import assert from 'node:assert/strict';
import { eventually } from './check.mjs';

/** One page of a user's history; `query` has `limit`, `cursor` and filters. */
export async function page(server, userId, query = {}) {
  const response = await get(server, '/v1/calls', { userId, ...query });
  assert.equal(response.status, 200, await response.clone().text());
  assert.match(response.headers.get('content-type'), /^application\/json/);
  const body = await response.json();
  assert.deepEqual(Object.keys(body).sort(), ['calls', 'nextCursor']);
  return body;
}

/** A user's calls, newest first (at most one page). */
export async function calls(server, userId, query = {}) {
  return (await page(server, userId, query)).calls;
}

/** Waits until the call's row satisfies `fits`, because history is written after the call's events. */
export async function row(server, userId, callId, fits = () => true) {
  let last;
  return eventually(async () => {
    const response = await get(server, `/v1/calls/${callId}`, { userId });
    last = await response.json();
    return response.status === 200 && fits(last) && last;
  }, `a fitting history row of ${callId}`).catch((error) => {
    throw new Error(`${error.message}; it is ${JSON.stringify(last)}`);
  });
}

export function get(server, path, query = {}) {
  const url = new URL(path, server.url);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined) url.searchParams.set(name, value);
  }
  return fetch(url);
}

export function post(server, path) {
  return fetch(new URL(path, server.url), { method: 'POST' });
}

/** Checks that the response is a problem document with this status, which names this field if given. */
export async function assertProblem(response, status, field) {
  const text = await response.text();
  assert.equal(response.status, status, text);
  assert.match(response.headers.get('content-type') ?? '', /^application\/problem\+json/);
  const problem = JSON.parse(text);
  const expected = ['detail', 'status', 'title', 'type'];
  if (field !== undefined) expected.unshift('field');
  assert.deepEqual(Object.keys(problem).sort(), expected.sort(), text);
  assert.equal(problem.type, 'about:blank');
  assert.equal(problem.status, status);
  assert.ok(problem.title.length > 0 && problem.detail.length > 0, text);
  if (field !== undefined) assert.equal(problem.field, field);
}
