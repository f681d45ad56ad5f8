// `node crowd-process.mjs URL COUNT`: lean clients, each a user of its own with one websocket, which reconnect by
// themselves like the library. Prints a line when all have joined, and again each time that all have reconnected.

import WebSocket from 'ws';

const [url, count] = [process.argv[2].replace('http', 'ws'), Number(process.argv[3])];
/** The most first connections at a time. Reconnections are not limited. */
const AT_ONCE = 50;
const DELAY_MS = 400;
const LONGEST_DELAY_MS = 2_000;

let joined = 0;

class Client {
  attempts = 0;

  constructor(number) {
    this.auth = JSON.stringify({ userId: `crowd-${process.pid}-${number}`, deviceId: 'd' });
  }

  connect() {
    return new Promise((resolve) => {
      this.resolve = resolve;
      this.#open();
    });
  }

  #open() {
    const ws = new WebSocket(`${url}/socket.io/?EIO=4&transport=websocket`, { perMessageDeflate: false, handshakeTimeout: 20_000 });
    ws.on('message', (data) => this.#take(ws, data.toString()));
    ws.on('error', () => {});
    ws.on('close', () => this.#lost());
  }

  #take(ws, text) {
    if (text === '2') ws.send('3');
    else if (text.startsWith('0')) ws.send(`40${this.auth}`);
    else if (text.startsWith('40')) this.#joined();
  }

  #joined() {
    this.isJoined = true;
    this.attempts = 0;
    this.resolve();
    joined += 1;
    if (joined === count) console.log('all are joined');
  }

  #lost() {
    if (this.isJoined) joined -= 1;
    this.isJoined = false;
    const delay = Math.min(LONGEST_DELAY_MS, DELAY_MS * 2 ** this.attempts);
    this.attempts += 1;
    // The library waits between half and one and a half times as long.
    setTimeout(() => this.#open(), delay * (0.5 + Math.random()));
  }
}

const clients = Array.from({ length: count }, (_, number) => new Client(number));
for (let first = 0; first < count; first += AT_ONCE) {
  await Promise.all(clients.slice(first, first + AT_ONCE).map((client) => client.connect()));
}
