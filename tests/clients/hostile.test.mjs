// Invalid input of every kind. After each, the server is alive, an existing call continues, and a new call works; when
// the server stops, its log is searched for panics (see support/server.mjs).

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import {
  activeCall, answer, assertCallsWork, assertTalking, candidate, offer, pair, ringing,
} from '../support/calls.mjs';
import { assertError, assertRefused, eventually, someone, within } from '../support/check.mjs';
import { connect, join } from '../support/client.mjs';
import { get } from '../support/http.mjs';
import { eventFrame, rawSocket, tcp } from '../support/raw.mjs';
import { startServer } from '../support/server.mjs';

const server = await startServer();

// Ends the call that lasts through all of this file.
const leaving = [];
let lasting;
before(async () => {
  lasting = await activeCall({ after: (leave) => leaving.push(leave) }, server);
});
after(async () => {
  for (const leave of leaving) leave();
  await server.stop();
});

/** Other users notice nothing: the lasting call continues, and a new one works. */
async function assertUnharmed(t) {
  await assertLastingCallGoesOn();
  await assertCallsWork(t, server);
}

// One check after the other, because concurrent tests share the lasting call.
let checks = Promise.resolve();
function assertLastingCallGoesOn() {
  const check = async () => {
    await assertTalking(lasting.caller, lasting.callee);
    await lasting.caller.nothingElse({ after: [lasting.callee] });
    await lasting.callee.nothingElse();
  };
  const result = checks.then(check);
  checks = result.catch(() => {});
  return result;
}

const NOT_TEXT = [5, true, null, {}, [], ['x']];
const NOT_A_USER = [1.5, 2 ** 53, true, null, {}, [], ['x']];
const NOT_AN_OBJECT = [5, true, 'text', [], [1]];
const NOT_A_NUMBER = ['5', true, {}, []];

// For every event: a valid payload, and invalid values for each field.
const wrongFields = (toUserId, callId) => [
  {
    event: 'call:initiate',
    right: { toUserId, callType: 'audio', callerInfo: { name: 'A' }, clientCallId: 'c1' },
    required: ['toUserId', 'callType'],
    wrong: {
      toUserId: [...NOT_A_USER, '', 'x'.repeat(129), 'a\u0000b', 'tab\there'],
      callType: [...NOT_TEXT, '', 'AUDIO', 'fax'],
      callerInfo: NOT_AN_OBJECT,
      clientCallId: [5, true, {}, [], ''],
    },
  },
  {
    event: 'call:offer',
    right: { toUserId, offer: offer() },
    required: ['toUserId', 'offer'],
    wrong: {
      toUserId: [...NOT_A_USER, ''],
      offer: [...NOT_AN_OBJECT, null, {}, { type: 'offer' }, { sdp: 'v=0' }, { type: 5, sdp: 'v=0' }, { type: 'offer', sdp: 5 }, { type: 'offer', sdp: ['v=0'] }],
      callId: [5, true, {}, []],
    },
  },
  {
    event: 'call:answer',
    right: { toUserId, answer: answer() },
    required: ['toUserId', 'answer'],
    wrong: {
      toUserId: [...NOT_A_USER, ''],
      answer: [...NOT_AN_OBJECT, null, {}, { type: 'answer' }, { sdp: 'v=0' }, { type: 'answer', sdp: null }, { type: {}, sdp: 'v=0' }],
      callId: [5, true, {}, []],
    },
  },
  {
    event: 'call:ice-candidate',
    right: { toUserId, candidate: candidate() },
    required: ['toUserId', 'candidate'],
    wrong: {
      toUserId: [...NOT_A_USER, ''],
      candidate: [
        5, true, 'text', [], [candidate()], {}, { candidate: 5 }, { sdpMid: '0' },
        { ...candidate(), sdpMLineIndex: 'first' }, { ...candidate(), sdpMid: 5 }, { ...candidate(), usernameFragment: 5 },
      ],
      callId: [5, true, {}, []],
    },
  },
  {
    event: 'call:reject',
    right: { toUserId, reason: 'Busy' },
    required: ['toUserId'],
    wrong: { toUserId: [...NOT_A_USER, ''], reason: [5, true, {}, []], callId: [5, true, {}, []] },
  },
  {
    event: 'call:busy',
    right: { toUserId },
    required: ['toUserId'],
    wrong: { toUserId: [...NOT_A_USER, ''], callId: [5, true, {}, []] },
  },
  {
    event: 'call:end',
    right: { toUserId, duration: 5 },
    required: ['toUserId'],
    wrong: { toUserId: [...NOT_A_USER, ''], duration: NOT_A_NUMBER, callId: [5, true, {}, []] },
  },
  { event: 'call:sync', right: {}, required: [], wrong: { callId: [5, true, {}, []] } },
  {
    event: 'call:stats',
    right: { callId },
    required: ['callId'],
    wrong: {
      callId: [5, true, {}, []],
      roundTripMs: NOT_A_NUMBER,
      lossPercent: NOT_A_NUMBER,
      jitterMs: NOT_A_NUMBER,
      candidateType: [5, true, {}, []],
      iceState: [5, true, {}, []],
    },
  },
  {
    event: 'presence:subscribe',
    right: { userIds: [] },
    required: ['userIds'],
    wrong: { userIds: [5, true, null, 'alice', {}, [1.5], [null], [''], [['alice']], ['x'.repeat(129)], ['ok', {}]] },
  },
  {
    event: 'presence:unsubscribe',
    right: { userIds: [] },
    required: ['userIds'],
    wrong: { userIds: [5, true, null, 'alice', {}, [1.5], [null]] },
  },
];

describe('wrong fields', { concurrency: false }, () => {
  for (const { event } of wrongFields()) {
    test(`of ${event} are named`, async (t) => {
      const { caller, callee, callId } = event === 'call:initiate' ? await pair(t, server) : await activeCall(t, server);
      const { right, required, wrong } = wrongFields(callee.userId, callId).find((entry) => entry.event === event);
      const tries = [];
      for (const field of required) {
        const missing = { ...right };
        delete missing[field];
        tries.push([missing, field]);
      }
      for (const [field, values] of Object.entries(wrong)) {
        for (const value of values) tries.push([{ ...right, [field]: value }, field]);
      }
      const replies = await Promise.all(tries.map(([payload]) => caller.ack(event, payload)));
      for (const [index, [payload, field]] of tries.entries()) {
        const sent = JSON.stringify(payload).slice(0, 200);
        assert.equal(replies[index].error?.type, 'INVALID_PAYLOAD', `${event} ${sent} was answered ${JSON.stringify(replies[index])}`);
        assertRefused(replies[index], 'INVALID_PAYLOAD', { mentions: field, event });
      }
      // Without an ack, the error comes as the event.
      caller.emit(event, tries[0][0]);
      if (required.length > 0) assertError(await caller.next('call:error'), 'INVALID_PAYLOAD', { mentions: required[0], event });
      await callee.nothingElse({ after: [caller] });

      // Valid events still work, also with unknown fields.
      if (event !== 'call:reject' && event !== 'call:busy') {
        await caller.ok(event, { ...right, unknown: { field: [1, 2] }, constructor: 5, toString: null });
      }
    });
  }

  test('of user-connected are named', async (t) => {
    const client = await join(t, server);
    const wrong = [1.5, true, null, [], {}, '', 'x'.repeat(129), 'é'.repeat(65), 'nul\u0000', { userId: 1.5 }, { userId: null }, { userId: '' }, { user: 'x' }];
    for (const payload of wrong) {
      assertRefused(await client.ack('user-connected', payload), 'INVALID_PAYLOAD', { mentions: 'userId', event: 'user-connected' });
    }
    assertRefused(await client.ack('user-connected'), 'INVALID_PAYLOAD', { mentions: 'userId' });
    await client.ok('user-connected', someone('alice'));
  });

  test('payloads that are no object, are missing, or are many', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const events = ['call:initiate', 'call:offer', 'call:answer', 'call:ice-candidate', 'call:reject', 'call:busy', 'call:end', 'call:stats', 'presence:subscribe'];
    for (const event of events) {
      for (const payload of [[], [null], [5], ['text'], [[]], [true], [[{}]]]) {
        assertRefused(await caller.ack(event, ...payload), 'INVALID_PAYLOAD', { event });
      }
    }
    // Arguments after the payload are ignored.
    await caller.ok('call:ice-candidate', { toUserId: callee.userId, candidate: null }, { more: 1 }, 'and more');
    await callee.next('call:ice-candidate');
    await assertTalking(caller, callee);
  });

  test('however long what is refused is, the answer is short', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('long') });
    const long = '\u007f'.repeat(60_000);
    const events = [`42"${long}"`, `42["${long}",{}]`, `42["call:end","${long}"]`, `42["call:end",{"${long}":1,"${long}":1}]`, `42["call:end",{"toUserId":"${long}"}]`];
    for (const event of events) {
      raw.send(event);
      const answer = await Promise.race([raw.frame((text) => text.startsWith('42["call:error"'), 'the refusal'), raw.closed]);
      if (typeof answer === 'string') assert.ok(answer.length < 2_048, `${event.slice(0, 20)}: ${answer.length}`);
      else break;
    }
  });

  test('unknown events are refused by name', async (t) => {
    const alice = await join(t, server, { userId: someone('alice') });
    const unknown = ['call:bogus', 'CALL:INITIATE', 'call:initiate ', 'message', '', '__proto__', 'constructor', 'toString', 'x'.repeat(5_000), '💥'];
    for (const event of unknown) {
      assertRefused(await alice.ack(event, { toUserId: 'x' }), 'INVALID_PAYLOAD', { mentions: event.length < 100 ? event : [] });
      alice.emit(event, 1, 2, 3);
      assertError(await alice.next('call:error'), 'INVALID_PAYLOAD');
    }
    // Events that only the server sends are unknown from a client.
    for (const event of ['call:incoming', 'call:ended', 'call:error', 'call:resumed', 'presence:update', 'server:draining']) {
      assertRefused(await alice.ack(event, {}), 'INVALID_PAYLOAD', { mentions: event });
    }
    await alice.fence();
  });

  test('binary payloads are refused', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const toUserId = callee.userId;
    const blob = Buffer.from('binary');
    const attempts = [
      ['call:offer', { toUserId, offer: blob }],
      ['call:offer', { toUserId, offer: { type: 'offer', sdp: blob } }],
      ['call:ice-candidate', { toUserId, candidate: { ...candidate(), blob } }],
      ['call:end', blob],
      ['user-connected', blob],
    ];
    for (const [event, payload] of attempts) {
      assertRefused(await caller.ack(event, payload), 'INVALID_PAYLOAD');
      caller.emit(event, payload);
      assertError(await caller.next('call:error'), 'INVALID_PAYLOAD');
    }
    await callee.nothingElse({ after: [caller] });
    await assertTalking(caller, callee);
  });

  test('others are unharmed', assertUnharmed);
});

describe('wrong sizes and depths', () => {
  const nested = (depth) => `${'['.repeat(depth)}${']'.repeat(depth)}`;

  test('deep nesting is passed on or refused, never dropped', async (t) => {
    const { caller: witness } = await pair(t, server);
    for (const depth of [50, 200, 2_000, 50_000]) {
      const raw = await rawSocket(t, server, { userId: someone('deep') });
      for (const payload of [
        `{"toUserId":"${witness.userId}","callType":"audio","callerInfo":{"x":${nested(depth)}}}`,
        `{"toUserId":"${witness.userId}","callType":"audio","unknown":${nested(depth)}}`,
        `{"toUserId":${nested(depth)},"callType":"audio"}`,
        nested(depth),
        '{"a":'.repeat(Math.min(depth, 10_000)) + '1' + '}'.repeat(Math.min(depth, 10_000)),
      ]) {
        raw.send(`427["call:initiate",${payload}]`);
        const [reply] = JSON.parse((await raw.frame((text) => text.startsWith('437['), `an ack at depth ${depth}`)).slice(3));
        if (reply.ok) await raw.ack('call:end', { toUserId: witness.userId });
        else assert.match(reply.error.type, /^(INVALID_PAYLOAD|PAYLOAD_TOO_LARGE)$/);
      }
      raw.destroy();
    }
    await assertUnharmed(t);
  });

  test('what would break the other side is refused, and names its field', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const raw = await rawSocket(t, server, { userId: someone('raw') });
    const send = async (event, payload) => {
      raw.send(`427["${event}",${payload}]`);
      return JSON.parse((await raw.frame((text) => text.startsWith('437['), `an ack of ${payload.slice(0, 80)}`)).slice(3))[0];
    };
    const to = `"toUserId":"${callee.userId}"`;
    const carried = {
      callerInfo: ['call:initiate', (x) => `{${to},"callType":"audio","callerInfo":{"name":"x","more":${x}}}`],
      offer: ['call:offer', (x) => `{${to},"offer":{"type":"offer","sdp":"v=0","more":${x}}}`],
      answer: ['call:answer', (x) => `{${to},"answer":{"type":"answer","sdp":"v=0","more":${x}}}`],
      candidate: ['call:ice-candidate', (x) => `{${to},"candidate":{"candidate":"c","more":${x}}}`],
    };
    const wrong = {
      'at most 64 levels': [nested(64), nested(500), '{"a":'.repeat(64) + '1' + '}'.repeat(64)],
      'float': ['1e400', '[0,-1E400]', '9'.repeat(400)],
      'surrogate': ['"\\ud800"', '"a\\udc00b"', '{"\\ud83d":1}', '"\\ude00\\ud83d"'],
    };
    for (const [field, [event, payload]] of Object.entries(carried)) {
      for (const [mentions, values] of Object.entries(wrong)) {
        for (const value of values) assertRefused(await send(event, payload(value)), 'INVALID_PAYLOAD', { mentions: [field, mentions], event });
      }
    }
    await callee.nothingElse({ after: [caller] });
    // Unusual but readable JSON arrives as it was sent.
    const unusual = '[[1e308,-0,1E-400,12345678901234567890],"\\ud83d\\ude00\\u0000\\\\ud800"]';
    const deep = `${'['.repeat(62)}${unusual}${']'.repeat(62)}`.slice(1, -1);
    const frames = [];
    callee.socket.io.engine.on('data', (data) => frames.push(data));
    const offered = `{"type":"offer","sdp":"v=0","more":${deep}}`;
    caller.socket.io.engine.write(`2["call:offer",{${to},"offer":${offered}}]`);
    await eventually(() => frames.some((frame) => frame.includes(offered)), 'it is passed on byte by byte');
    await assertTalking(caller, callee);
  });

  test('a message beyond the websocket limit closes that connection alone', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const raw = await rawSocket(t, server, { userId: someone('huge') });
    raw.send(eventFrame('call:offer', { toUserId: callee.userId, offer: { type: 'offer', sdp: 'x'.repeat(300 * 1024) } }));
    await within(10_000, raw.closed, 'the connection is closed');
    const giant = await rawSocket(t, server, { userId: someone('giant') });
    giant.send('4'.repeat(20 * 1024 * 1024));
    await within(10_000, giant.closed, 'the connection is closed');
    await assertTalking(caller, callee);
    await assertUnharmed(t);
  });

  test('a message in endless fragments closes that connection alone', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('fragments') });
    for (let count = 0; count < 64 && raw.isOpen; count += 1) {
      raw.ws.send('4'.repeat(16 * 1024), { fin: false });
    }
    await within(10_000, raw.closed, 'the connection is closed');
    await assertUnharmed(t);
  });

  test('a large payload that is allowed as a message but not as SDP is named, and the socket lives', async (t) => {
    const { caller, callee } = await activeCall(t, server);
    const large = { toUserId: callee.userId, offer: { type: 'offer', sdp: 'x'.repeat(200 * 1024) } };
    assertRefused(await caller.ack('call:offer', large), 'PAYLOAD_TOO_LARGE', { event: 'call:offer' });
    assertRefused(await caller.ack('call:offer', { ...large, offer: { type: 'x'.repeat(200 * 1024), sdp: 'v=0' } }), 'PAYLOAD_TOO_LARGE');
    await assertTalking(caller, callee);
  });
});

describe('broken frames', () => {
  const frames = [
    '', ' ', '0', '0{}', '1x', '3', '3probe', '2probe', '5', '6', '7', '9', 'x', '\u0000', '💥', '{"event":1}',
    '4', '4x', '49', '4 2["x"]', '42', '42 ', '42[', '42]', '42{}', '42[]', '42null', '42"call:end"', '42[5,{}]', '42[null]', '42[true,1]',
    '42[{}]', '42[["call:end"]]', '42["call:end"', '42["call:end",', '42["call:end",{"toUserId":}]', '42["call:end",{"toUserId":"x"}]]',
    '42["call:end",{"toUserId":"x","toUserId":"y"}]', "42['call:end']", '42["\\ud800"]', '42["\\u0000",{}]', '42["a\\"b",{}]', '42["call:\\u0065nd",{}]', '42["call:end",{"toUserId":"\\udfff"}]',
    '42["call:end",1e999]', '42["call:end",-]', '42["call:end",NaN]', '42["__proto__",{"__proto__":{"ok":true}}]', '42["disconnect"]',
    '42["connect"]', '42["error",{}]', '42["disconnecting","x"]',
    '4299999999999999999999["call:end",{}]', '42-1["call:end",{}]', '420["call:end",{}]',
    '43', '43[]', '430[]', '439999[{"ok":true}]', '43["no id"]', '4318446744073709551616[1]',
    '40', '40{', '40{}', '40[]', '40/admin,{}', '40/,{}', '40/' + 'n'.repeat(10_000) + ',', '41/nowhere,', '42/nowhere,["call:end",{}]', '42/["x"]',
    '44', '44"x"', '44{"message":"x"}',
    '45', '45-["x"]', '450-["call:end",{}]', '451-["call:end",{"_placeholder":true,"num":0}]', '451-["call:end"]', '4599999-["call:end",{}]',
    '45-1-["x"]', '451-', '46', '461-["x"]', '461-1[{"_placeholder":true,"num":7}]',
    'b', 'bAAAA', 'b!!!!',
  ];

  test('on a connected socket', async (t) => {
    for (const frame of frames) {
      const raw = await rawSocket(t, server, { userId: someone('broken') });
      raw.send(frame);
      // Either the server still answers on this socket or it has closed it.
      const outcome = await Promise.race([
        raw.ack('ice:servers', {}).then(() => 'answers', () => 'closed'),
        raw.closed.then(() => 'closed'),
      ]);
      assert.ok(['answers', 'closed'].includes(outcome), frame);
      raw.destroy();
    }
    await assertUnharmed(t);
  });

  test('before the namespace is joined', async (t) => {
    for (const frame of frames) {
      const raw = await rawSocket(t, server, { joins: false });
      raw.send(frame);
      raw.send('42["call:initiate",{"toUserId":"x","callType":"audio"}]');
      raw.destroy();
      await raw.closed;
    }
    await assertUnharmed(t);
  });

  test('binary frames, wrong opcodes, wrong UTF-8, unmasked bytes', async (t) => {
    const bytes = [
      Buffer.from([0x82, 0x80, 0, 0, 0, 0]), // an empty binary message
      Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28]), // text that is not UTF-8
      Buffer.from([0x8f, 0x80, 0, 0, 0, 0]), // a reserved opcode
      Buffer.from([0xf1, 0x80, 0, 0, 0, 0]), // reserved bits
      Buffer.from([0x81, 0x01, 0x32]), // not masked
      Buffer.from([0x80, 0x81, 0, 0, 0, 0, 0x32]), // a continuation of nothing
      Buffer.from([0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), // 2^63 bytes to come
      Buffer.from([0x89, 0xfe, 0x01, 0x00, 0, 0, 0, 0, ...Array(256).fill(0)]), // a ping that is too long
      Buffer.from([0x88, 0x81, 0, 0, 0, 0, 0x01]), // a close frame with half a code
      Buffer.from(Array.from({ length: 4_096 }, (_, index) => (index * 7919) % 256)),
    ];
    for (const one of bytes) {
      const raw = await rawSocket(t, server, { userId: someone('bytes') });
      raw.ws._socket.write(one);
      raw.send('42["call:bogus",{}]');
      raw.ws._socket.end();
      await within(10_000, raw.closed, `the connection with ${one.subarray(0, 8).toString('hex')} is closed`);
    }
    await assertUnharmed(t);
  });

  test('promised attachments that never come', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('promises') });
    for (let count = 0; count < 50 && raw.isOpen; count += 1) {
      raw.send('451-["call:end",{"_placeholder":true,"num":0}]');
      raw.send('42["call:end",{}]');
    }
    raw.destroy();
    await assertUnharmed(t);
  });

  test('more connects, disconnects and namespaces than make sense', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('fickle') });
    raw.send(...Array(200).fill('40{"userId":"someone-else"}'), ...Array(200).fill('40/other,{}'), '41', '41', '40{"userId":"back"}', '42["call:end",{}]');
    raw.destroy();
    await raw.closed;
    await assertUnharmed(t);
  });
});

describe('floods', () => {
  test('thousands of wrong events at once', async (t) => {
    const raw = await rawSocket(t, server, { userId: someone('flood') });
    const wrong = ['42["call:initiate",{"toUserId":5}]', '42["call:bogus",{}]', '42["call:offer",{"toUserId":"x","offer":{}}]'];
    raw.send(...Array.from({ length: 9_000 }, (_, index) => wrong[index % wrong.length]));
    await assertLastingCallGoesOn();
    await Promise.race([raw.ack('ice:servers', {}).catch(() => {}), raw.closed]);
    await assertUnharmed(t);
  });

  test('hundreds of sockets that come, say something and go', async (t) => {
    const visits = Array.from({ length: 200 }, async () => {
      const raw = await rawSocket(t, server, { userId: someone('visitor') });
      raw.emit('presence:subscribe', { userIds: [lasting.caller.userId] });
      raw.emit('call:initiate', { toUserId: lasting.callee.userId, callType: 'audio' });
      raw.destroy();
      await raw.closed;
    });
    await Promise.all(visits);
    await assertUnharmed(t);
  });

  test('a party that stops reading is cut off; nobody else waits for it', async (t) => {
    const caller = await join(t, server, { userId: someone('alice'), deviceId: 'laptop' });
    const stuck = await rawSocket(t, server, { userId: someone('stuck') });
    const { callId } = await caller.ok('call:initiate', { toUserId: stuck.userId, callType: 'video' });
    await stuck.ack('call:answer', { toUserId: caller.userId, answer: answer() });
    await caller.next('call:answer');
    stuck.stopReading();
    const sdp = 'x'.repeat(60_000);
    let ended = false;
    const end = caller.next('call:ended', (event) => event.callId === callId, 40_000).then((event) => {
      ended = true;
      return event;
    });
    // Each is acked before the next goes out: the sender itself stays within its bounds.
    for (let count = 0; count < 600 && !ended; count += 1) {
      await Promise.race([end, caller.ack('call:offer', { toUserId: stuck.userId, offer: { type: 'offer', sdp } }).catch(() => {})]);
    }
    await assertLastingCallGoesOn();
    assert.equal((await end).reason, 'connection_lost');
    assert.ok(caller.socket.connected, 'the sender stays');
    await assertUnharmed(t);
  });
});

describe('the transport', { concurrency: true }, () => {
  test('requests that make no sense are refused', async (t) => {
    const requests = [
      ['/socket.io/', {}],
      ['/socket.io/', { EIO: '4' }],
      ['/socket.io/', { EIO: '4', transport: 'pigeon' }],
      ['/socket.io/', { EIO: '99', transport: 'polling' }],
      ['/socket.io/', { EIO: 'x', transport: 'polling' }],
      ['/socket.io/', { EIO: '4', transport: 'polling', sid: 'unknown' }],
      ['/socket.io/', { EIO: '4', transport: 'polling', sid: '../../etc/passwd' }],
      ['/socket.io/', { EIO: '4', transport: 'websocket' }],
      ['/socket.io/', { EIO: '4', transport: 'websocket', sid: 'unknown' }],
    ];
    for (const [path, query] of requests) {
      const response = await get(server, path, query);
      assert.ok(response.status >= 400 && response.status < 500, `${JSON.stringify(query)}: ${response.status}`);
      await response.arrayBuffer();
    }
    for (const method of ['PUT', 'DELETE', 'PATCH']) {
      const response = await fetch(`${server.url}/socket.io/?EIO=4&transport=polling`, { method });
      assert.ok(response.status >= 400 && response.status < 500, `${method}: ${response.status}`);
      await response.arrayBuffer();
    }
    await assertUnharmed(t);
  });

  test('polling posts that are broken or too large', async (t) => {
    const bodies = ['', 'x', '4', '42[', '\u001e', '\u001e\u001e\u001e', '40\u001e40\u001e42["x"]', 'bAAAA', '42["call:end",{}]', '4'.repeat(3 * 1024 * 1024)];
    for (const body of bodies) {
      const opening = await (await get(server, '/socket.io/', { EIO: '4', transport: 'polling' })).text();
      const { sid } = JSON.parse(opening.slice(1));
      const url = `${server.url}/socket.io/?EIO=4&transport=polling&sid=${sid}`;
      const outcome = await fetch(url, { method: 'POST', body, headers: { 'content-type': 'text/plain' } }).then(
        async (response) => {
          await response.arrayBuffer();
          return response.status;
        },
        () => 'closed',
      );
      assert.ok(outcome === 'closed' || outcome < 500, `${JSON.stringify(body.slice(0, 20))}: ${outcome}`);
      if (body.length > 1024 * 1024) assert.ok(outcome === 'closed' || outcome >= 400, `too large: ${outcome}`);
    }
    await assertUnharmed(t);
  });

  test('a websocket that joins nothing is closed', async (t) => {
    const raw = await rawSocket(t, server, { joins: false });
    await within(20_000, raw.closed, 'the connection is closed');
  });

  for (const [what, text] of Object.entries({
    'no byte': '',
    'half a request line': 'GET /socket.io/?EIO=4',
    'half a head': 'GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n',
  })) {
    test(`a handshake of ${what} is closed after the header time-out`, async (t) => {
      const connection = tcp(t, server);
      await once(connection.socket, 'connect');
      const began = Date.now();
      connection.socket.write(text);
      await within(15_000, connection.closed, 'the connection is closed');
      const took = Date.now() - began;
      assert.ok(took > 8_000, `closed after ${took} ms, before its time`);
    });
  }

  test('a handshake that trickles in is closed after the header time-out', async (t) => {
    const connection = tcp(t, server);
    await once(connection.socket, 'connect');
    connection.socket.write('GET / HTTP/1.1\r\nHost: localhost\r\n');
    const trickle = setInterval(() => connection.socket.write('X-Slow: 1\r\n'), 500);
    t.after(() => clearInterval(trickle));
    await within(15_000, connection.closed, 'the connection is closed');
  });

  test('a head that is too large or makes no sense is refused', async (t) => {
    for (const head of [
      `GET / HTTP/1.1\r\nHost: x\r\nX-Large: ${'x'.repeat(200_000)}\r\n\r\n`,
      `GET / HTTP/1.1\r\nHost: x\r\n${'X-Many: 1\r\n'.repeat(5_000)}\r\n`,
      `GET /${'x'.repeat(100_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
      'NONSENSE\r\n\r\n',
      '\u0016\u0003\u0001\u0002\u0000\u0001\u0000',
      'GET / HTTP/9.9\r\n\r\n',
    ]) {
      const connection = tcp(t, server);
      await once(connection.socket, 'connect');
      connection.socket.write(head, 'latin1');
      const received = await within(15_000, connection.closed, `closed after ${JSON.stringify(head.slice(0, 30))}`);
      if (received) assert.match(received, /^HTTP\/1\.[01] 4\d\d /);
    }
    await assertUnharmed(t);
  });

  test('a websocket upgrade with a wrong handshake is refused', async (t) => {
    for (const headers of [
      'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n',
      'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 8\r\n',
      'Connection: close\r\nUpgrade: h2c\r\n',
    ]) {
      const connection = tcp(t, server);
      await once(connection.socket, 'connect');
      connection.socket.write(`GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n${headers}\r\n`);
      await once(connection.socket, 'data');
      assert.match(connection.received(), /^HTTP\/1\.1 4\d\d /, headers);
    }
    await assertUnharmed(t);
  });

  test('a client that reconnects with garbage never gets anyone else’s call', async (t) => {
    const { caller, callee } = await ringing(t, server, { callee: { deviceId: 'phone' } });
    const wrong = connect(t, server, { auth: { userId: callee.userId, deviceId: 'phone; drop table' } });
    assert.match(await wrong.next('connect_error'), /^INVALID_PAYLOAD: /);
    await callee.ok('call:answer', { toUserId: caller.userId, answer: answer() });
    await caller.next('call:answer');
    await assertTalking(caller, callee);
  });
});
