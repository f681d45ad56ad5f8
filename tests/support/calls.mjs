// Calls in the states that tests begin from, and the payloads that travel in them.

import assert from 'node:assert/strict';
import { someone } from './check.mjs';
import { join, settled } from './client.mjs';

export const offer = (label = 'first') => ({ type: 'offer', sdp: `v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=${label}\r\n` });
export const answer = (label = 'first') => ({ type: 'answer', sdp: `v=0\r\no=- 2 1 IN IP4 127.0.0.1\r\ns=${label}\r\n` });

export const candidate = (number = 1) => ({
  candidate: `candidate:${number} 1 udp 2122260223 127.0.0.1 ${50_000 + (number % 10_000)} typ host`,
  sdpMLineIndex: 0,
  sdpMid: '0',
  usernameFragment: 'frag',
});

export const candidates = (count, from = 1) => Array.from({ length: count }, (_, index) => candidate(from + index));

/** Two users, each with one device; options go to `join`. */
export async function pair(t, server, { caller = {}, callee = {} } = {}) {
  return {
    caller: await join(t, server, { userId: someone('alice'), ...caller }),
    callee: await join(t, server, { userId: someone('bob'), ...callee }),
  };
}

/** A call that rings at one device, its offer given. All that came so far is read. */
export async function ringing(t, server, { callType = 'video', withOffer = true, ...parties } = {}) {
  const { caller, callee } = await pair(t, server, parties);
  const { callId } = await dial(caller, callee, { callType, withOffer });
  return { caller, callee, callId };
}

/** An answered call between two devices. All that came so far is read. */
export async function activeCall(t, server, options = {}) {
  const call = await ringing(t, server, options);
  await pickUp(call.callee, call.caller);
  return call;
}

/** The caller's device calls, the callee's rings. */
export async function dial(caller, callee, { callType = 'video', withOffer = true } = {}) {
  const placed = await caller.ok('call:initiate', { toUserId: callee.userId, callType });
  assert.equal(placed.status, 'pending');
  await caller.next('call:ringing');
  await callee.next('call:incoming');
  if (withOffer) {
    await caller.ok('call:offer', { toUserId: callee.userId, offer: offer() });
    await callee.next('call:offer');
  }
  return placed;
}

/** The callee's device answers. */
export async function pickUp(callee, caller) {
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
}

/** The call's two devices still hear each other, in both directions. */
export async function assertTalking(one, other) {
  for (const [from, to] of [[one, other], [other, one]]) {
    const sent = candidate(Math.floor(Math.random() * 1e9));
    from.emit('call:ice-candidate', { toUserId: to.userId, candidate: sent });
    await to.next('call:ice-candidate', ({ candidate: got }) => got?.candidate === sent.candidate);
  }
}

/** A new call between two new users works from the first ring to the hang-up. */
export async function assertCallsWork(t, server) {
  const { caller, callee } = await activeCall(t, server);
  await assertTalking(caller, callee);
  await caller.ok('call:end', { toUserId: callee.userId });
  const ended = await callee.next('call:ended');
  assert.equal(ended.reason, 'completed');
  await settled(caller, callee);
  caller.close();
  callee.close();
}
