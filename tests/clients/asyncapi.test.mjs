// The AsyncAPI document: valid, and in agreement with all packets that are really sent.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, describe, test } from 'node:test';
import Ajv from 'ajv';
import { answer, candidate, dial, offer, pair, ringing } from '../support/calls.mjs';
import { assertRefused, someone } from '../support/check.mjs';
import { connect, join, settled } from '../support/client.mjs';
import { checkerOf, documentOf } from '../support/schemas.mjs';
import { startServer } from '../support/server.mjs';
import { JWT, tokenOf } from '../support/tokens.mjs';

const SPECIFICATION = createRequire(import.meta.url)('@asyncapi/specs/schemas/3.0.0-without-$id.json');

const server = await startServer({ args: ['--stun-urls', 'stun:stun.example.org:3478'] });
after(() => server.stop());
const document = await documentOf(server, '/asyncapi.json');
const { messages, schemas } = document.components;

/** The messages of one side, by the name of the event. */
const sentBy = (side) =>
  new Map(Object.entries(messages).filter(([key]) => key.startsWith(`${side}.`)).map(([, message]) => [message.name, message]));
const ofClient = sentBy('client');
const ofServer = sentBy('server');

/** The ack of a client's event. */
function ackOf(event) {
  const [reply] = document.operations[`client.${event.replace(':', '.')}`].reply.messages;
  return messages[reply.$ref.split('/').at(-1)];
}

describe('/asyncapi.json', () => {
  test('is AsyncAPI 3', () => {
    const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
    const validate = ajv.compile(SPECIFICATION);
    assert.ok(validate(document), JSON.stringify(validate.errors, null, 1));
    assert.ok(!validate({ ...document, channels: { 'a:b': { messages: 1 } } }), 'the check can fail');
  });

  test('refers to nothing that is not there', () => {
    for (const [, path] of JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)) {
      const found = path.split('/').reduce((place, key) => place?.[key], document);
      assert.ok(found, path);
    }
  });
});

/** The same document, but closed: nothing is allowed that it does not name, except in payloads that are only relayed. */
function closed(node, name) {
  if (Array.isArray(node)) return node.map((one) => closed(one));
  if (node === null || typeof node !== 'object') return node;
  if (['CallerInfo', 'SessionDescription', 'IceCandidate'].includes(name)) return node;
  const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, closed(value, key)]));
  return copy.type === 'object' && copy.properties && !copy.additionalProperties ? { ...copy, additionalProperties: false } : copy;
}

/** Records all packets of its clients and validates them against the document. */
class Witness {
  constructor() {
    this.seen = { client: new Set(), server: new Set(), acks: new Set() };
    const strict = closed(document);
    this.problemsOf = checkerOf(strict).problems;
    this.strict = strict.components.messages;
  }

  /** Records and validates these clients' packets from now on, and all events that they have received so far. */
  watch(...clients) {
    for (const client of clients) {
      client.log.forEach(({ event, payload }) => this.fromServer(event, payload));
      client.socket.onAny((event, payload) => this.fromServer(event, payload));
      client.socket.onAnyOutgoing((event, payload) => this.fromClient(event, payload));
      const ask = client.ack.bind(client);
      client.ack = async (event, ...payload) => {
        const reply = await ask(event, ...payload);
        this.acked(event, reply);
        return reply;
      };
    }
  }

  fromServer(event, payload) {
    if (['connect_error', 'disconnect'].includes(event)) return;
    this.check('server', event, ofServer.get(event), payload);
  }

  fromClient(event, payload) {
    if (payload !== undefined) this.check('client', event, ofClient.get(event), payload);
  }

  acked(event, reply) {
    const message = ackOf(event);
    if (reply.ok) this.seen.acks.add(message.name);
    this.expectNone(`the ack of ${event}`, this.closedPayload(message), reply);
  }

  check(side, event, message, payload) {
    assert.ok(message, `${event} of the ${side} is in the document`);
    this.seen[side].add(event);
    this.expectNone(event, this.closedPayload(message), payload);
  }

  closedPayload(message) {
    return this.strict[Object.keys(messages).find((key) => messages[key] === message)].payload;
  }

  expectNone(what, schema, value) {
    assert.deepEqual(this.problemsOf(schema, value), [], `${what}: ${JSON.stringify(value)}`);
  }
}

describe('what goes over the wire', () => {
  test('is what the document says, for every event and every answer', async (t) => {
    const witness = new Witness();
    const watched = async (options) => {
      const client = await join(t, server, options);
      witness.watch(client);
      return client;
    };

    // A whole call with all of its events; the caller's connection is lost once.
    const call = await pair(t, server, { caller: { deviceId: 'laptop' } });
    const { caller, callee } = call;
    witness.watch(caller, callee);
    const toCallee = { toUserId: callee.userId };
    const toCaller = { toUserId: caller.userId };
    await caller.ok('ice:servers');
    await callee.ok('user-connected', callee.userId);
    await callee.ok('user-connected', { userId: callee.userId });
    await caller.ok('presence:subscribe', { userIds: [callee.userId] });
    const callerInfo = { name: 'Alice', pic: 'https://example.org/a.png', mood: 1 };
    const { callId } = await caller.ok('call:initiate', { ...toCallee, callType: 'video', callerInfo, clientCallId: '1' });
    await caller.ok('call:offer', { ...toCallee, callId, offer: { ...offer(), more: true } });
    await caller.ok('call:sync', {});
    await callee.ok('call:answer', { ...toCaller, answer: answer() });
    for (const one of [candidate(), null, '', { candidate: 'c' }]) await caller.ok('call:ice-candidate', { ...toCallee, candidate: one });
    await callee.ok('call:stats', { callId, roundTripMs: 20.5, lossPercent: 0, jitterMs: 1, candidateType: 'host', iceState: 'connected' });
    await caller.drop();
    await callee.next('call:peer-reconnecting');
    await callee.ok('call:sync', { callId });
    await caller.comeBack();
    await caller.next('call:resumed');
    await callee.next('call:peer-reconnected');
    await callee.ok('call:end', { ...toCaller, duration: 2.5 });
    await caller.next('call:ended');
    await caller.ok('call:sync', { callId });
    await caller.ok('presence:unsubscribe', { userIds: [callee.userId] });

    // Other ends of a call, and refusals.
    const second = await watched({ userId: callee.userId });
    await dial(caller, callee);
    await callee.ok('call:reject', { ...toCaller, reason: 'later' });
    await caller.next('call:rejected');
    await second.next('call:ended');
    await dial(caller, callee);
    for (const device of [callee, second]) await device.ok('call:busy', toCaller);
    await caller.next('call:busy');
    assertRefused(await caller.ack('call:initiate', { toUserId: someone('nobody'), callType: 'audio' }), 'RECIPIENT_OFFLINE');
    assertRefused(await caller.ack('auth:refresh', { token: 'x' }), 'FORBIDDEN');
    caller.emit('call:end', { toUserId: someone('nobody') });
    await caller.next('call:error');
    await dial(caller, callee);
    assertRefused(await callee.ack('call:initiate', { ...toCaller, callType: 'audio' }), 'GLARE');
    await settled(caller, callee, second);

    // With tokens.
    const strict = await startServer({ env: JWT });
    t.after(() => strict.stop());
    const guest = connect(t, strict, { auth: { token: tokenOf('guest', { seconds: 30 }) } });
    witness.watch(guest);
    await guest.connected();
    await guest.next('auth:expiring');
    await guest.ok('auth:refresh', { token: tokenOf('guest') });

    // The server stops.
    await server.restart();
    await callee.next('server:draining');

    const names = (side) => [...side.keys()].sort();
    assert.deepEqual([...witness.seen.server].sort(), names(ofServer), 'every event to clients was seen');
    assert.deepEqual([...witness.seen.client].sort(), names(ofClient), 'every event of clients was seen');
    const acks = Object.keys(messages).filter((key) => key.startsWith('ack.')).map((key) => messages[key].name);
    assert.deepEqual([...witness.seen.acks].sort(), acks.sort(), 'every answer was seen');
  });

  test('that the document forbids is refused', async (t) => {
    const { problems } = checkerOf(document);
    const { caller, callee, callId } = await ringing(t, server);
    const toUserId = callee.userId;
    const wrong = [
      ['call:offer', { toUserId }],
      ['call:offer', { toUserId, offer: { type: 'offer' } }],
      ['call:offer', { toUserId, offer: { type: 'offer', sdp: 'x'.repeat(65_537) } }],
      ['call:offer', { toUserId: '', offer: offer() }],
      ['call:offer', { toUserId, offer: offer(), callId: 'x' }],
      ['call:initiate', { toUserId, callType: 'fax' }],
      ['call:initiate', { toUserId, callType: 'audio', clientCallId: '' }],
      ['call:initiate', { toUserId, callType: 'audio', clientCallId: 'x'.repeat(129) }],
      ['call:initiate', { toUserId, callType: 'audio', callerInfo: 'me' }],
      ['call:ice-candidate', { toUserId, candidate: 'c' }],
      ['call:ice-candidate', { toUserId, candidate: { candidate: 'c', sdpMLineIndex: 65_536 } }],
      ['call:ice-candidate', { toUserId, candidate: { candidate: 'c', sdpMid: 0 } }],
      ['call:reject', { toUserId, reason: 'x'.repeat(1_025) }],
      ['call:end', { toUserId, duration: -1 }],
      ['call:stats', { callId: null }],
      ['call:stats', { callId, iceState: 'x'.repeat(65) }],
      ['presence:subscribe', { userIds: Array.from({ length: 501 }, (_, number) => `u${number}`) }],
      ['presence:subscribe', { userIds: ['a\u0000'] }],
      ['user-connected', 'x'.repeat(129)],
    ];
    for (const [event, payload] of wrong) {
      const what = `${event} ${JSON.stringify(payload).slice(0, 100)}`;
      assert.notDeepEqual(problems(ofClient.get(event).payload, payload), [], `the document forbids ${what}`);
      const reply = await caller.ack(event, payload);
      assert.ok(['INVALID_PAYLOAD', 'PAYLOAD_TOO_LARGE'].includes(reply.error?.type), `${what}: ${JSON.stringify(reply)}`);
      assert.deepEqual(problems(ackOf(event).payload, reply), []);
    }
  });

  test('at the handshake too', async (t) => {
    const { problems } = checkerOf(document);
    for (const deviceId of ['a b', 'x'.repeat(65), '']) {
      assert.notDeepEqual(problems(schemas.Auth, { deviceId }), []);
      const client = connect(t, server, { auth: { userId: someone('eve'), deviceId } });
      assert.match(await client.next('connect_error'), /^INVALID_PAYLOAD: deviceId/);
    }
    assert.deepEqual(problems(schemas.Auth, { userId: 'anna', deviceId: 'A-z_0.9' }), []);
  });
});
