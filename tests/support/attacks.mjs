// Attacks by clients with nothing but the network or a socket that try to overload a server. Each attack keeps its
// pressure until it is stopped, and counts the server's reactions.

import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { eventFrame } from './raw.mjs';

const KIB = 1024;
const UPGRADE = 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n';
const WEBSOCKET = `GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1\r\n${UPGRADE}\r\n`;
const POLLING = '/socket.io/?EIO=4&transport=polling';

const get = (path) => `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`;
const post = (path, length, body = '') => `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: ${length}\r\n\r\n${body}`;

/** The head of a client's websocket frame with this payload length, masked with zeros, which change nothing. */
function frameHead(length, opcode = 0x81) {
  const head = Buffer.alloc(14);
  head[0] = opcode;
  if (length < 126) {
    head[1] = 0x80 | length;
    return head.subarray(0, 6);
  }
  if (length < 65_536) {
    head[1] = 0x80 | 126;
    head.writeUInt16BE(length, 2);
    return head.subarray(0, 8);
  }
  head[1] = 0x80 | 127;
  head.writeBigUInt64BE(BigInt(length), 2);
  return head;
}

const frame = (text) => Buffer.concat([frameHead(Buffer.byteLength(text)), Buffer.from(text)]);

/** Many connections to one server, and the counts of their outcomes. */
class Crowd {
  constructor(port) {
    this.port = port;
    this.open = new Set();
    this.isOver = false;
    this.outcome = { connections: 0, 'closed by the server': 0 };
  }

  count(what) {
    this.outcome[what] = (this.outcome[what] ?? 0) + 1;
  }

  /** One connection: `hello` is sent when it is open, `heard` gets all received data. */
  connect(hello, heard = () => {}) {
    const socket = connect(this.port, '127.0.0.1');
    this.open.add(socket);
    this.count('connections');
    socket.once('connect', () => {
      if (hello) socket.write(hello);
    });
    socket.on('data', (data) => {
      const text = data.toString('latin1');
      const [, status] = /^HTTP\/1\.1 (\d+)/.exec(text) ?? [];
      if (status) this.count(status);
      heard(text, socket);
    });
    // Its end must be noticed even if nothing else is read.
    socket.on('error', () => {});
    socket.once('close', () => {
      this.open.delete(socket);
      if (!this.isOver) this.count('closed by the server');
    });
    return socket;
  }

  /** Keeps this many connections open until the attack ends. */
  async keep(number, begin, pace = 500) {
    while (!this.isOver) {
      for (let begun = 0; begun < pace && this.open.size < number; begun += 1) begin(this);
      await pause(50);
    }
  }

  /** Sends a little more on every open connection. */
  drip(text) {
    for (const socket of this.open) if (!socket.connecting) socket.write(text);
  }

  /** A websocket that has joined; `heard` gets all data after that. Pings are answered. */
  websocket({ join = '40{"userId":"mallory"}', onJoined = () => {}, answersPings = true } = {}) {
    let isJoined = false;
    return this.connect(WEBSOCKET, (text, socket) => {
      if (text.includes('0{"sid"') && join) socket.write(frame(join));
      if (!isJoined && text.includes('40{')) {
        isJoined = true;
        onJoined(socket);
      }
      if (answersPings && text.includes('\u0081\u00012')) socket.write(frame('3'));
    });
  }

  /** The id of a new session on polling. */
  async session(hello) {
    const url = `http://127.0.0.1:${this.port}${POLLING}`;
    const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
    if (hello) {
      await (await fetch(`${url}&sid=${sid}`, { method: 'POST', body: hello })).text();
      await (await fetch(`${url}&sid=${sid}`)).text();
    }
    return sid;
  }

  stop() {
    this.isOver = true;
    for (const socket of this.open) socket.destroy();
  }
}

/** Writes for as long as the other side accepts data. */
async function pour(crowd, socket, data) {
  while (!crowd.isOver && !socket.destroyed) {
    if (!socket.write(data)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => {});
    else await pause(0);
  }
}

/** A presence request whose reply is about 75 KB long. */
const LARGE_ANSWER = (id) => `42${id}["presence:subscribe",{"userIds":${JSON.stringify(Array.from({ length: 500 }, (_, n) => `${n}`.padStart(128, 'x')))}}]`;

let users = 0;
const user = () => `mallory-${process.pid}-${(users += 1)}`;
const hello = (userId) => `40${JSON.stringify({ userId })}`;

export const ATTACKS = {
  'connections that send no byte': {
    number: 10_000,
    run: (crowd, number) => crowd.keep(number, () => crowd.connect()),
  },
  'requests that trickle in': {
    number: 3_000,
    async run(crowd, number) {
      const drip = setInterval(() => crowd.drip('X-Slow: 1\r\n'), 1_000);
      await crowd.keep(number, () => crowd.connect('GET / HTTP/1.1\r\nHost: x\r\n'));
      clearInterval(drip);
    },
  },
  'sockets that join nothing': {
    number: 10_000,
    run: (crowd, number) => crowd.keep(number, () => crowd.websocket({ join: null })),
  },
  'sockets that never identify': {
    number: 10_000,
    run: (crowd, number) => crowd.keep(number, () => crowd.websocket({ join: '40' })),
  },
  'sockets that vanish without a word': {
    // They answer no pings, like a phone without network.
    number: 2_000,
    seconds: 60,
    run: (crowd, number) => crowd.keep(number, () => crowd.websocket({ join: hello(user()), answersPings: false })),
  },
  'sessions on polling, never used': {
    number: 10_000,
    async run(crowd, number) {
      // Each connection opens one session after the other. Sessions live for 10 s, so some of them expire meanwhile.
      const again = (_, socket) => (crowd.outcome[200] ?? 0) < 5 * number && socket.write(get(POLLING));
      await crowd.keep(50, () => crowd.connect(get(POLLING), again));
    },
  },
  'frames of terabytes': {
    number: 200,
    run: (crowd, number) =>
      crowd.keep(number, () =>
        crowd.websocket({
          join: hello(user()),
          onJoined(socket) {
            socket.write(frameHead(2 ** 42));
            pour(crowd, socket, Buffer.alloc(64 * KIB, '4'));
          },
        }),
      ),
  },
  'frames just under the bound, all the time': {
    number: 20,
    run(crowd, number) {
      const large = frame(`42["call:offer",{"toUserId":"x","offer":{"type":"offer","sdp":"${'x'.repeat(250 * KIB)}"}}]`);
      return crowd.keep(number, () => crowd.websocket({ join: hello(user()), onJoined: (socket) => pour(crowd, socket, large) }));
    },
  },
  'frames that never end': {
    number: 1_000,
    async run(crowd, number) {
      const most = Buffer.concat([frameHead(256 * KIB), Buffer.alloc(250 * KIB, '4')]);
      await crowd.keep(number, () => crowd.websocket({ join: hello(user()), onJoined: (socket) => socket.write(most) }), 50);
    },
  },
  'small events, as fast as they go': {
    number: 20,
    run(crowd, number) {
      const burst = Buffer.concat(Array(500).fill(frame(eventFrame('call:bogus', {}))));
      return crowd.keep(number, () => crowd.websocket({ join: hello(user()), onJoined: (socket) => pour(crowd, socket, burst) }));
    },
  },
  'joining again and again on one connection': {
    number: 20,
    run(crowd, number) {
      const burst = Buffer.concat(Array(100).fill(frame(`40{"userId":"mallory","x":"${'x'.repeat(2 * KIB)}"}`)));
      return crowd.keep(number, () => crowd.websocket({ join: hello(user()), onJoined: (socket) => pour(crowd, socket, burst) }));
    },
  },
  'websockets that ask and do not read': {
    number: 50,
    run(crowd, number) {
      const ask = frame(LARGE_ANSWER(1));
      return crowd.keep(number, () =>
        crowd.websocket({
          join: hello(user()),
          onJoined(socket) {
            socket.pause();
            pour(crowd, socket, ask);
          },
        }),
      );
    },
  },
  'sessions on polling that are sent to and do not fetch': {
    number: 20,
    async run(crowd, number) {
      const one = async () => {
        while (!crowd.isOver) {
          const [callee, caller] = [user(), user()];
          const sid = await crowd.session(hello(callee)).catch(() => '');
          const url = `http://127.0.0.1:${crowd.port}${POLLING}&sid=${sid}`;
          const say = (event, payload) => fetch(url, { method: 'POST', body: eventFrame(event, payload) }).catch(() => {});
          const offer = { toUserId: callee, offer: { type: 'offer', sdp: 'x'.repeat(60 * KIB) } };
          const flood = Buffer.concat(Array(4).fill(frame(eventFrame('call:offer', offer))));
          crowd.websocket({
            join: hello(caller),
            async onJoined(socket) {
              socket.write(frame(eventFrame('call:initiate', { toUserId: callee, callType: 'audio' })));
              await pause(200);
              await say('call:answer', { toUserId: caller, answer: { type: 'answer', sdp: '' } });
              pour(crowd, socket, flood);
              await pause(2_000);
              socket.destroy();
            },
          });
          await pause(2_500);
        }
      };
      await Promise.all(Array.from({ length: number }, one));
    },
  },
  'bodies that trickle in, many to one session': {
    number: 2_000,
    async run(crowd, number) {
      const drip = setInterval(() => crowd.drip('x'), 1_000);
      let sid = '';
      const renew = async () => {
        while (!crowd.isOver) {
          sid = await crowd.session(hello(user())).catch(() => '');
          await pause(5_000);
        }
      };
      const body = '4'.repeat(200 * KIB);
      const renewing = renew();
      while (!sid && !crowd.isOver) await pause(50);
      await crowd.keep(number, () => crowd.connect(post(`${POLLING}&sid=${sid}`, 250 * KIB, body)), 20);
      clearInterval(drip);
      await renewing;
    },
  },
  'many polls on one session': {
    number: 500,
    async run(crowd, number) {
      let sid = await crowd.session(hello(user()));
      const renewing = setInterval(async () => (sid = await crowd.session(hello(user())).catch(() => sid)), 1_000);
      await crowd.keep(number, () => crowd.connect(get(`${POLLING}&sid=${sid}`), (_, socket) => socket.write(get(`${POLLING}&sid=${sid}`))));
      clearInterval(renewing);
    },
  },
  'requests whose answers nobody reads': {
    number: 1_000,
    run(crowd, number) {
      const burst = get('/openapi.json').repeat(100);
      return crowd.keep(number, () => {
        const socket = crowd.connect(burst);
        socket.pause();
      });
    },
  },
};

/** Runs an attack until `stop` of the result is called, which returns the counts. */
export function begin(name, port, number = ATTACKS[name].number) {
  const crowd = new Crowd(port);
  const running = ATTACKS[name].run(crowd, number);
  return {
    crowd,
    async stop() {
      crowd.stop();
      await running;
      return crowd.outcome;
    },
  };
}
