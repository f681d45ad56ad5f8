// Calls in the states from which tests start, and the payloads in them.

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

/** A call that rings on one device and has its offer. All events so far are read. */
export async function ringing(t, server, { callType = 'video', withOffer = true, ...parties } = {}) {
  const { caller, callee } = await pair(t, server, parties);
  const { callId } = await dial(caller, callee, { callType, withOffer });
  return { caller, callee, callId };
}

/** An answered call between two devices. All events so far are read. */
export async function activeCall(t, server, options = {}) {
  const call = await ringing(t, server, options);
  await pickUp(call.callee, call.caller);
  return call;
}

/** Places a call; the callee's device rings. */
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

/** Answers the call. */
export async function pickUp(callee, caller) {
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
}

/** Checks that messages pass between the two devices in both directions. */
export async function assertTalking(one, other) {
  for (const [from, to] of [[one, other], [other, one]]) {
    const sent = candidate(Math.floor(Math.random() * 1e9));
    from.emit('call:ice-candidate', { toUserId: to.userId, candidate: sent });
    await to.next('call:ice-candidate', ({ candidate: got }) => got?.candidate === sent.candidate);
  }
}

/** Checks that a new call between two new users works, from the first ring to the hang-up. */
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
