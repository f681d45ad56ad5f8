// Traces as a collector receives them: sampling, spans, and a collector that fails.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { activeCall, assertCallsWork, dial, pair } from '../support/calls.mjs';
import { eventually, someone } from '../support/check.mjs';
import { freePort } from '../support/cluster.mjs';
import { startCollector, traceOf, tracing } from '../support/collector.mjs';
import { scrape } from '../support/metrics.mjs';
import { ONE_NODE, runToExit, startServer } from '../support/server.mjs';

const JSON_LOG = { SWITCHBOARD_LOG_FORMAT: 'json', RUST_LOG: 'info,switchboard=debug' };

async function traced(t, env = {}) {
  const collector = await startCollector();
  t.after(() => collector.stop());
  const server = await startServer({ env: tracing(collector, env) });
  t.after(() => server.stop());
  return { collector, server };
}

/** Exports that end when all spans of `talk` are there, and never before. */
const IN_ONE_EXPORT = { OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '11', OTEL_BSP_SCHEDULE_DELAY: '60000' };

/** Places, answers and ends a call. */
async function talk(t, server) {
  const { caller, callee, callId } = await activeCall(t, server);
  await caller.ok('call:end', { toUserId: callee.userId });
  await callee.next('call:ended');
  return { caller, callee, callId };
}

const dropped = async (server, why) => (await scrape(server)).value('switchboard_spans_dropped_total', { why });
const exported = async (server) => (await scrape(server)).value('switchboard_spans_exported_total');

describe('a trace', { ...ONE_NODE, concurrency: true }, () => {
  test('begins with each attempt, whatever becomes of it', async (t) => {
    const { collector, server } = await traced(t);
    const { caller, callee } = await pair(t, server);
    const outcomes = () => collector.spans.filter(({ name }) => name === 'call attempt').map(({ attributes }) => attributes['switchboard.outcome']);
    const becomes = async (toUserId, outcome) => {
      const answer = await caller.ack('call:initiate', { toUserId, callType: 'audio', clientCallId: 'one' });
      await eventually(() => outcomes().includes(outcome), outcome).catch((error) => {
        throw new Error(`${error.message}: there are ${outcomes()}, and it was answered ${JSON.stringify(answer)}`);
      });
      return answer;
    };
    await becomes(caller.userId, 'self_call');
    await becomes(someone('nobody'), 'offline');
    const { callId } = await becomes(callee.userId, 'ringing');
    await becomes(callee.userId, 'repeated');
    await becomes(someone('other'), 'call_in_progress');
    assert.deepEqual(outcomes(), ['self_call', 'offline', 'ringing', 'repeated', 'call_in_progress']);
    const repeated = collector.spans.find(({ attributes }) => attributes['switchboard.outcome'] === 'repeated');
    assert.notEqual(repeated.traceId, traceOf(callId));
    assert.deepEqual(repeated.links.map(({ traceId }) => traceId), [traceOf(callId)]);
    assert.ok(collector.spans.every(({ isFailed }) => !isFailed), 'none of it is a fault of the service');
  });

  test('has a step for each change of the call', async (t) => {
    const { collector, server } = await traced(t);
    const deviceId = 'phone';
    const { caller, callee } = await pair(t, server, { caller: { deviceId } });
    const { callId } = await dial(caller, callee);
    await caller.drop();
    await caller.comeBack();
    await caller.next('call:resumed');
    await caller.ok('call:end', { toUserId: callee.userId });
    const spans = await collector.until(callId, 'end', 'ringing');
    const root = spans.find(({ name }) => name === 'call attempt');
    const steps = spans.filter(({ parentSpanId, attributes }) => parentSpanId === root.spanId && attributes['switchboard.call.version']);
    assert.deepEqual(steps.map(({ name }) => name), ['lose device', 'bring device back', 'end']);
  });

  test('names users as the log does', async (t) => {
    const { collector, server } = await traced(t, { SWITCHBOARD_LOG_USERS: 'hashed', SWITCHBOARD_LOG_USERS_KEY: 'one' });
    const { callId } = await talk(t, server);
    const spans = await collector.until(callId, 'call attempt', 'end');
    const { attributes } = spans.find(({ name }) => name === 'call attempt');
    assert.match(attributes['switchboard.caller'], /^[0-9a-f]{16}$/);
    assert.match(attributes['switchboard.callee'], /^[0-9a-f]{16}$/);
  });

  test('says whose it is, as OpenTelemetry has it', async (t) => {
    const env = { OTEL_SERVICE_NAME: 'calls', OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test,service.version=9' };
    const { collector, server } = await traced(t, env);
    const { callId } = await talk(t, server);
    const [{ resource }] = await collector.until(callId, 'call attempt');
    assert.deepEqual([resource['service.name'], resource['service.version'], resource['deployment.environment.name']], ['calls', '9', 'test']);
    assert.match(resource['service.instance.id'], /^[0-9a-f]{32}$/);
    const [{ method, url, headers }] = collector.requests;
    assert.deepEqual([method, url, headers['content-type']], ['POST', '/v1/traces', 'application/x-protobuf']);
  });

  test('is found by the log, if the call is sampled', async (t) => {
    const { server } = await traced(t, { ...JSON_LOG, OTEL_TRACES_SAMPLER: 'always_off' });
    const { callId } = await talk(t, server);
    const about = await eventually(() => {
      const lines = server.logs().trimEnd().split('\n').map((line) => JSON.parse(line));
      const found = lines.filter(({ call }) => call === callId);
      return found.length === 3 && found;
    }, 'lines about the call');
    assert.deepEqual(about.map(({ trace_id }) => trace_id), [undefined, undefined, undefined]);
  });
});

describe('a collector', { ...ONE_NODE, concurrency: true }, () => {
  test('is shown the headers that are set, and nobody else is', async (t) => {
    const secret = 'hunter2hunter2';
    const env = { OTEL_EXPORTER_OTLP_HEADERS: `authorization=Bearer%20${secret},x-scope=calls`, RUST_LOG: 'trace' };
    const { collector, server } = await traced(t, env);
    const { callId } = await talk(t, server);
    await collector.until(callId, 'end');
    const [{ headers }] = collector.requests;
    assert.deepEqual([headers.authorization, headers['x-scope']], [`Bearer ${secret}`, 'calls']);
    assert.ok(server.logs().includes('DEBUG') && !server.logs().includes(secret), 'the log does not show it');
    const printed = await runToExit(['config'], { env: tracing(collector, env) });
    assert.ok(printed.stdout.includes('authorization=***') && !printed.stdout.includes(secret), printed.stdout);
  });

  test('that is away harms nothing: calls go on, what is lost is counted, one line tells', async (t) => {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    const server = await startServer({ env: { ...tracing({ url }), RUST_LOG: 'info' } });
    t.after(() => server.stop());
    await assertCallsWork(t, server);
    const first = await eventually(() => dropped(server, 'export'), 'steps are dropped');
    await assertCallsWork(t, server);
    await eventually(async () => (await dropped(server, 'export')) > first, 'more steps are dropped');
    assert.equal((await fetch(`${server.adminUrl}/readyz`)).status, 200);
    const collector = await startCollector({ port });
    t.after(() => collector.stop());
    await eventually(async () => {
      await assertCallsWork(t, server);
      return collector.spans.length > 0;
    }, 'it is back');
    await eventually(() => /accepts traces again/.test(server.logs()), 'the log tells so');
    assert.equal(server.logs().match(/traces cannot be exported/g).length, 1, server.logs());
    assert.match(server.logs(), /traces cannot be exported.*cannot be reached/);
  });

  test('that is busy is tried again', async (t) => {
    const { collector, server } = await traced(t);
    collector.status = 503;
    const { callId } = await talk(t, server);
    await eventually(() => collector.requests.length > 0, 'it is asked');
    collector.status = 200;
    await collector.until(callId, 'call attempt', 'end');
    assert.equal(await dropped(server, 'export'), 0);
    assert.doesNotMatch(server.logs(), /traces cannot be exported/);
  });

  test('that refuses is not', async (t) => {
    const { collector, server } = await traced(t, IN_ONE_EXPORT);
    collector.status = 400;
    await talk(t, server);
    await eventually(() => dropped(server, 'export'), 'steps are dropped');
    assert.equal(collector.requests.length, 1, 'they went in one export, once');
    assert.match(server.logs(), /traces cannot be exported.*400/);
    assert.equal(await exported(server), 0);
  });

  test('says which steps it does not want: they count as dropped', async (t) => {
    const { collector, server } = await traced(t, IN_ONE_EXPORT);
    collector.rejects = 2;
    await talk(t, server);
    await eventually(() => exported(server), 'steps are exported');
    assert.equal(await dropped(server, 'rejected'), 2);
    assert.equal(await exported(server), collector.spans.length - 2);
  });

  test('that never answers fills a queue that has a bound', async (t) => {
    const { collector, server } = await traced(t, { OTEL_BSP_MAX_QUEUE_SIZE: '4', OTEL_BSP_SCHEDULE_DELAY: '1' });
    collector.status = null;
    await eventually(async () => {
      await assertCallsWork(t, server);
      return (await dropped(server, 'queue')) > 0;
    }, 'the queue is full');
    const began = Date.now();
    await server.stop();
    assert.ok(Date.now() - began < 8_000, 'the node does not wait for it for long');
  });

  test('gets what still waits when a node stops', async (t) => {
    const { collector, server } = await traced(t, { OTEL_BSP_SCHEDULE_DELAY: '60000' });
    const { callId } = await talk(t, server);
    assert.deepEqual(collector.requests, []);
    await server.stop();
    const names = collector.trace(callId).map(({ name }) => name);
    assert.ok(names.includes('call attempt') && names.includes('talking'), `${names}`);
  });
});

test('settings that cannot be carried out are one sentence', { ...ONE_NODE }, async () => {
  for (const [name, value] of [
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'grpc'],
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'collector:4317'],
    ['OTEL_EXPORTER_OTLP_COMPRESSION', 'gzip'],
    ['OTEL_TRACES_SAMPLER', 'jaeger_remote'],
    ['OTEL_EXPORTER_OTLP_HEADERS', 'hunter2'],
  ]) {
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318', [name]: value };
    const { code, stderr } = await runToExit(['--listen', '127.0.0.1:0'], { env });
    assert.equal(code, 1, stderr);
    assert.match(stderr, new RegExp(`^error: ${name}: expected [^\n]+\n$`));
    assert.ok(!stderr.includes('hunter2'), stderr);
  }
  const { code, stdout } = await runToExit(['config'], { env: { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://a:4318', OTEL_SDK_DISABLED: 'true' } });
  assert.ok(code === 0 && !stdout.includes('OTEL'), stdout);
});
