// One trace per call attempt, with spans of all nodes, as a collector receives it.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { describe, test } from 'node:test';
import { answer, assertTalking, dial } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startCluster, startRedis } from '../support/cluster.mjs';
import { startCollector, traceOf, tracing } from '../support/collector.mjs';

/** Two nodes that send their traces to one collector. */
async function traced(t, env = {}) {
  const collector = await startCollector();
  t.after(() => collector.stop());
  const cluster = await startCluster(2, { env: tracing(collector, env) });
  t.after(() => cluster.stop());
  return { collector, cluster };
}

/** A caller on the first node and a callee on the second. */
async function across(t, { nodes }, { caller = {}, callee = {} } = {}) {
  return {
    caller: await join(t, nodes[0], { userId: someone('alice'), ...caller }),
    callee: await join(t, nodes[1], { userId: someone('bob'), ...callee }),
  };
}

/** A whole call. */
async function talk(caller, callee) {
  const { callId } = await dial(caller, callee);
  await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
  await caller.next('call:answer');
  await assertTalking(caller, callee);
  await caller.ok('call:end', { toUserId: callee.userId });
  await callee.next('call:ended');
  return callId;
}

/** Each span as `name, node: kind < parent`. */
function tree(spans, nodes) {
  const names = new Map(spans.map(({ spanId, name }) => [spanId, name]));
  const on = (span) => ['here', 'there'][nodes.indexOf(span.resource['service.instance.id'])];
  return spans.map((span) => `${span.name}, ${on(span)}: ${span.kind} < ${names.get(span.parentSpanId) ?? span.parentSpanId}`).sort();
}

const nodeOf = (spans, name) => spans.find((span) => span.name === name).resource['service.instance.id'];

const WHOLE = [
  'call attempt, here: server < ',
  'look up, here: client < call attempt',
  'commit, here: client < call attempt',
  'take in, there: consumer < call attempt',
  'pass offer on, here: producer < call attempt',
  'deliver offer, there: consumer < pass offer on',
  'answer, there: server < call attempt',
  'commit, there: client < answer',
  'take in, here: consumer < answer',
  'pass answer on, there: producer < answer',
  'deliver answer, here: consumer < pass answer on',
  'ringing, there: internal < call attempt',
  'end, here: server < call attempt',
  'commit, here: client < end',
  'take in, there: consumer < end',
  'talking, here: internal < call attempt',
];

/** Everything that is sent to Redis from now on: records and messages between nodes. */
async function overheard(t, redis) {
  const told = { text: '' };
  const socket = connect(redis.port, '127.0.0.1', () => socket.write('MONITOR\r\n'));
  t.after(() => socket.destroy());
  socket.setEncoding('utf8').on('data', (text) => (told.text += text));
  await eventually(() => told.text.startsWith('+OK'), 'Redis lets listen');
  return told;
}

/** Whether a call with this id is sampled, by the 56 random bits at its end. */
const isSampled = (callId, ratio) => BigInt(`0x${traceOf(callId).slice(18)}`) >= BigInt(Math.round((1 - ratio) * 2 ** 56));

describe('a call across two nodes', { concurrency: true }, () => {
  test('is one trace, of steps of both nodes, each below the one that it follows from', async (t) => {
    const { collector, cluster } = await traced(t, { SWITCHBOARD_LOG_FORMAT: 'json', RUST_LOG: 'info,switchboard=debug' });
    const { caller, callee } = await across(t, cluster);
    const callId = await talk(caller, callee);
    const spans = await eventually(() => collector.trace(callId).length >= WHOLE.length && collector.trace(callId), 'all steps').catch(() => collector.trace(callId));
    const nodes = [nodeOf(spans, 'call attempt'), nodeOf(spans, 'answer')];
    assert.notEqual(nodes[0], nodes[1]);
    assert.deepEqual(tree(spans, nodes), [...WHOLE].sort());
    assert.deepEqual(new Set(spans.map(({ spanId }) => spanId)).size, spans.length);

    const root = spans.find(({ name }) => name === 'call attempt');
    assert.deepEqual(root.attributes, {
      'switchboard.call.id': callId,
      'switchboard.call.type': 'video',
      'switchboard.caller': caller.userId,
      'switchboard.callee': callee.userId,
      'switchboard.to_nodes': nodes[1],
      'switchboard.outcome': 'ringing',
    });
    for (const { startMs, endMs, isFailed, resource } of spans) {
      assert.ok(startMs <= endMs && Math.abs(startMs - Date.now()) < 60_000, `${startMs} to ${endMs}`);
      assert.equal(isFailed, false);
      assert.equal(resource['service.name'], 'switchboard');
    }
    const of = (name) => spans.find((span) => span.name === name);
    assert.equal(of('end').attributes['switchboard.end_reason'], 'completed');
    assert.equal(of('end').attributes['switchboard.by'], 'caller');
    assert.equal(Math.round(of('ringing').endMs), Math.round(of('talking').startMs));

    // Each log line about the call names its trace.
    const lines = cluster.logs().trimEnd().split('\n').map((line) => JSON.parse(line));
    const about = lines.filter(({ call }) => call === callId);
    assert.deepEqual(about.map(({ message }) => message).sort(), ['call answered', 'call ended', 'call placed']);
    assert.ok(about.every(({ trace_id }) => trace_id === traceOf(callId)), JSON.stringify(about));
    assert.ok(lines.every(({ call, trace_id }) => call || !trace_id), 'no other line is about a trace');
  });

  test('goes on in its trace when the node that began it is dead', async (t) => {
    const { collector, cluster } = await traced(t);
    const { caller, callee } = await across(t, cluster);
    const { callId } = await dial(caller, callee);
    await collector.until(callId, 'call attempt');
    await cluster.nodes[0].kill();
    await callee.ok('call:reject', { toUserId: caller.userId });
    const spans = await collector.until(callId, 'reject', 'ringing');
    const root = spans.find(({ name }) => name === 'call attempt');
    const reject = spans.find(({ name }) => name === 'reject');
    assert.equal(reject.parentSpanId, root.spanId);
    assert.notEqual(nodeOf(spans, 'reject'), nodeOf(spans, 'call attempt'));
    assert.equal(reject.attributes['switchboard.end_reason'], 'declined');
  });

  test('leads from a node that traces nothing to one that does', async (t) => {
    const redis = await startRedis();
    const collector = await startCollector();
    t.after(() => collector.stop());
    const cluster = await startCluster(1, { redis, env: tracing(collector) });
    t.after(() => cluster.stop());
    await cluster.addNode();
    const { caller, callee } = await across(t, cluster);
    const callId = await talk(caller, callee);
    const spans = await collector.until(callId, 'end', 'talking', 'take in');
    const steps = tree(spans, [nodeOf(spans, 'call attempt')]);
    // The spans of the other node are missing; those that follow from them are not.
    assert.ok(steps.includes('take in, here: consumer < call attempt'), steps.join('\n'));
    assert.ok(steps.every((step) => !/there|undefined|answer/.test(step)), steps.join('\n'));
  });
});

describe('of calls that are not sampled', { concurrency: true }, () => {
  for (const [sampler, argument] of [['always_off'], ['parentbased_traceidratio', '0']]) {
    test(`nothing is exported and nothing is said to other nodes: ${sampler}`, async (t) => {
      const { collector, cluster } = await traced(t, { OTEL_TRACES_SAMPLER: sampler, OTEL_TRACES_SAMPLER_ARG: argument ?? '' });
      const told = await overheard(t, cluster.redis);
      const { caller, callee } = await across(t, cluster);
      const callId = await talk(caller, callee);
      await Promise.all(cluster.nodes.map((node) => node.stop()));
      assert.ok(told.text.includes(callId), 'what Redis was told was heard');
      assert.ok(!told.text.includes('traceparent'), told.text);
      assert.deepEqual(collector.requests, []);
    });
  }

  test('without a collector it is the same', async (t) => {
    const cluster = await startCluster(2);
    t.after(() => cluster.stop());
    const told = await overheard(t, cluster.redis);
    const { caller, callee } = await across(t, cluster);
    const callId = await talk(caller, callee);
    assert.ok(told.text.includes(callId) && !told.text.includes('traceparent'), told.text);
  });
});

test('of two nodes that sample half of all calls each takes the same half, whole', async (t) => {
  const ratio = 0.5;
  const { collector, cluster } = await traced(t, { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: `${ratio}` });
  const told = await overheard(t, cluster.redis);
  const { caller, callee } = await across(t, cluster);
  const calls = [];
  // As many calls as it takes to see both kinds, which is a few.
  while (calls.length < 6 || new Set(calls.map((callId) => isSampled(callId, ratio))).size < 2) {
    calls.push(await talk(...(calls.length % 2 ? [caller, callee] : [callee, caller])));
  }
  await Promise.all(cluster.nodes.map((node) => node.stop()));
  for (const callId of calls) {
    const spans = collector.trace(callId);
    assert.equal(spans.length, isSampled(callId, ratio) ? WHOLE.length : 0, `${callId}: ${spans.map(({ name }) => name)}`);
    assert.equal(told.text.includes(`00-${traceOf(callId)}-`), isSampled(callId, ratio), callId);
  }
});
