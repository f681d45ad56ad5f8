// Memory per idle, identified websocket: switchboard beside a Node server, in turn, several rounds.
//
//   node idle.mjs [sockets] [rounds]
//
// Talks to loopback only and ends by itself.
import { spawn } from 'node:child_process';
import { readFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { WebSocket } from 'ws';

const here = dirname(fileURLToPath(import.meta.url));
const sockets = Number(process.argv[2] ?? 5_000);
const rounds = Number(process.argv[3] ?? 3);
const IN_FLIGHT = 100;
const SETTLE_MS = 3_000;

const servers = {
  switchboard: (folder) => [
    join(here, '../../target/release/switchboard'),
    ['--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0', '--database-url', `sqlite://${join(folder, 'idle.db')}`],
  ],
  node: () => [process.execPath, [join(here, 'node-server.mjs')]],
};

const residentBytes = (pid) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1024;

const cpuSeconds = (pid) => {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
};

async function start(name, folder) {
  const [command, args] = servers[name](folder);
  const child = spawn(command, args, { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] });
  for await (const line of createInterface({ input: child.stdout })) {
    const url = /(http:\S+)/.exec(line)?.[1];
    if (url) return { child, url };
  }
  throw new Error(`${name} did not start`);
}

/** Connects one socket as a user of its own and answers its pings. */
function connect(url, number) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${url.replace('http', 'ws')}socket.io/?EIO=4&transport=websocket`, {
      perMessageDeflate: false,
    });
    socket.on('error', reject);
    socket.on('message', (data) => {
      const text = data.toString();
      if (text.startsWith('0')) socket.send(`40{"userId":"user-${number}"}`);
      else if (text === '2') socket.send('3');
      else if (text.startsWith('40')) resolve(socket);
    });
  });
}

async function measure(name) {
  const folder = mkdtempSync(join(tmpdir(), 'idle-'));
  const { child, url } = await start(name, folder);
  const open = [];
  try {
    // The first sockets warm the server up; they are not counted.
    for (let n = 0; n < 200; n += 1) open.push(await connect(url, `warm-${n}`));
    await sleep(SETTLE_MS);
    const before = residentBytes(child.pid);
    const cpuBefore = cpuSeconds(child.pid);
    for (let n = 0; n < sockets; n += IN_FLIGHT) {
      const batch = Array.from({ length: Math.min(IN_FLIGHT, sockets - n) }, (_, i) => connect(url, n + i));
      open.push(...(await Promise.all(batch)));
    }
    const cpu = cpuSeconds(child.pid) - cpuBefore;
    await sleep(SETTLE_MS);
    return {
      kilobytes: (residentBytes(child.pid) - before) / sockets / 1024,
      connectMicroseconds: (cpu / sockets) * 1e6,
    };
  } finally {
    for (const socket of open) socket.terminate();
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    await exited;
    rmSync(folder, { recursive: true, force: true });
  }
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
const show = (values, digits) =>
  `${median(values).toFixed(digits)} (${Math.min(...values).toFixed(digits)}–${Math.max(...values).toFixed(digits)})`;

const results = Object.fromEntries(Object.keys(servers).map((name) => [name, []]));
for (let round = 1; round <= rounds; round += 1) {
  for (const name of Object.keys(servers)) {
    const result = await measure(name);
    results[name].push(result);
    console.error(`round ${round}: ${name} ${result.kilobytes.toFixed(1)} KiB a socket`);
  }
}

console.log(`| ${sockets} idle websockets, ${rounds} rounds: median (range) | memory, KiB a socket | connect and identify, CPU µs |`);
console.log('|---|---|---|');
for (const [name, all] of Object.entries(results)) {
  const memory = show(all.map((result) => result.kilobytes), 1);
  const connects = show(all.map((result) => result.connectMicroseconds), 0);
  console.log(`| ${name} | ${memory} | ${connects} |`);
}
