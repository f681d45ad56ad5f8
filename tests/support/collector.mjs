// A trace collector: a real HTTP server that accepts OTLP in protobuf.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { eventually } from './check.mjs';

/** Starts the collector on `port`, or on a free one. */
export async function startCollector({ port = 0 } = {}) {
  const collector = new Collector();
  await collector.listen(port);
  return collector;
}

/** The settings of a node that exports its traces there without delay. */
export const tracing = (collector, more = {}) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
  OTEL_BSP_SCHEDULE_DELAY: '20',
  ...more,
});

export const traceOf = (callId) => callId.replaceAll('-', '');

class Collector {
  /** All spans so far, each with its `resource`. */
  spans = [];
  /** Method, path and headers of the requests. */
  requests = [];
  /** The response to requests; null for none. */
  status = 200;
  /** The number of spans that each response reports as rejected. */
  rejects = 0;

  async listen(port) {
    this.server = createServer((request, response) => this.#serve(request, response));
    this.server.listen(port, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
  }

  /** The spans of a call. */
  trace(callId) {
    return this.spans.filter(({ traceId }) => traceId === traceOf(callId));
  }

  /** The spans of a call, once these are among them. */
  async until(callId, ...names) {
    const came = () => this.trace(callId).map(({ name }) => name);
    const isThere = () => names.every((name) => came().includes(name));
    await eventually(isThere, `the steps ${names.join(', ')}`).catch((error) => {
      throw new Error(`${error.message}; there are ${came().join(', ')}`);
    });
    return this.trace(callId);
  }

  async stop() {
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, 'close');
  }

  async #serve(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method, url, headers } = request;
    this.requests.push({ method, url, headers });
    if (this.status === null) return;
    if (this.status === 200) this.spans.push(...spansIn(Buffer.concat(chunks)));
    // An ExportTraceServiceResponse: empty, or with `partial_success.rejected_spans`.
    const body = this.rejects ? [0x0a, 2, 0x08, this.rejects] : [];
    response.writeHead(this.status, { 'content-type': 'application/x-protobuf' }).end(Buffer.from(body));
  }
}

/** The spans of an ExportTraceServiceRequest. */
function spansIn(bytes) {
  return all(bytes, 1).flatMap((ofNode) => {
    const resource = attributes(all(one(ofNode, 1), 1));
    return all(ofNode, 2).flatMap((ofScope) => all(ofScope, 2).map((span) => ({ ...step(span), resource })));
  });
}

const KINDS = ['unspecified', 'internal', 'server', 'client', 'producer', 'consumer'];

function step(span) {
  const status = one(span, 15);
  return {
    traceId: one(span, 1).toString('hex'),
    spanId: one(span, 2).toString('hex'),
    parentSpanId: one(span, 4)?.toString('hex') ?? '',
    name: one(span, 5).toString(),
    kind: KINDS[Number(one(span, 6))],
    startMs: Number(one(span, 7).readBigUInt64LE()) / 1e6,
    endMs: Number(one(span, 8).readBigUInt64LE()) / 1e6,
    attributes: attributes(all(span, 9)),
    links: all(span, 13).map((link) => ({ traceId: one(link, 1).toString('hex'), spanId: one(link, 2).toString('hex') })),
    isFailed: status !== undefined && Number(one(status, 3)) === 2,
  };
}

function attributes(pairs) {
  return Object.fromEntries(
    pairs.map((pair) => {
      const value = one(pair, 2);
      return [one(pair, 1).toString(), one(value, 1)?.toString() ?? Number(one(value, 3))];
    }),
  );
}

const one = (message, number) => all(message, number)[0];

/** The values of the field with this number: numbers as BigInt, others as bytes. */
function all(message, number) {
  return fields(message).filter((field) => field.number === number).map(({ value }) => value);
}

function fields(message) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = message[at];
      assert.ok(byte !== undefined, 'the message ends too early');
      at += 1;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  const bytes = (length) => {
    assert.ok(at + length <= message.length, 'the message ends too early');
    at += length;
    return message.subarray(at - length, at);
  };
  const read = { 0: varint, 1: () => bytes(8), 2: () => bytes(Number(varint())), 5: () => bytes(4) };
  while (at < message.length) {
    const key = Number(varint());
    found.push({ number: key >> 3, value: read[key & 7]() });
  }
  return found;
}
