// A real TURN server: coturn, on loopback, with ports of its own.

import { execFile, spawn } from 'node:child_process';
import { createHmac, randomInt } from 'node:crypto';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { freePort } from './cluster.mjs';
import { eventually } from './check.mjs';
import { privateFolder } from './server.mjs';

const RELAY_PORTS = 100;

/** Starts a coturn with these shared secrets. */
export async function startCoturn(...secrets) {
  const coturn = new Coturn();
  coturn.dir = await privateFolder();
  coturn.port = await freePort();
  await coturn.start(secrets);
  return coturn;
}

class Coturn {
  output = '';

  async start(secrets) {
    // Ports in this range that are in use are skipped.
    const relays = randomInt(10_000, 32_000 - RELAY_PORTS);
    const settings = [
      '-n',
      '--listening-ip=127.0.0.1',
      `--listening-port=${this.port}`,
      '--relay-ip=127.0.0.1',
      `--min-port=${relays}`,
      `--max-port=${relays + RELAY_PORTS}`,
      '--realm=turn.test',
      '--use-auth-secret',
      ...secrets.map((secret) => `--static-auth-secret=${secret}`),
      '--fingerprint',
      '--no-cli',
      '--no-tls',
      '--no-dtls',
      '--allow-loopback-peers', // for tests only: otherwise it lets clients reach services that only the machine itself should
      '--log-file=stdout',
      '--simple-log',
      `--pidfile=${join(this.dir, 'pid')}`,
      `--userdb=${join(this.dir, 'turndb')}`,
    ];
    this.child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'turnserver', ...settings], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const pipe of [this.child.stdout, this.child.stderr]) pipe.setEncoding('utf8').on('data', (text) => (this.output += text));
    this.gone = once(this.child, 'close');
    await eventually(() => this.#listens(), 'coturn listens').catch((error) => {
      this.child.kill('SIGKILL');
      throw new Error(`${error.message}\n${this.output}`);
    });
  }

  /** The URL for clients. */
  get url() {
    return `turn:127.0.0.1:${this.port}?transport=udp`;
  }

  /** The same, over TCP. */
  get tcpUrl() {
    return `turn:127.0.0.1:${this.port}?transport=tcp`;
  }

  /** Whether a client with these credentials can send data to another one through the server. */
  async relays({ username, credential }) {
    const args = ['-u', username, '-w', credential, '-p', `${this.port}`, '-n', '2', '-c', '-y', '127.0.0.1'];
    const { code, said } = await new Promise((resolve) => {
      execFile('turnutils_uclient', args, { timeout: 30_000 }, (error, stdout, stderr) => {
        resolve({ code: error ? error.code : 0, said: stdout + stderr });
      });
    });
    if (code === 0 && /tot_recv_bytes ~ [1-9]/.test(said)) return true;
    if (/Cannot complete Allocation/.test(said)) return false;
    throw new Error(`neither relayed nor refused (exit code ${code}):\n${said}\n${this.output}`);
  }

  async stop() {
    this.child.kill('SIGKILL');
    await this.gone;
    await rm(this.dir, { recursive: true, force: true });
  }

  #listens() {
    return new Promise((resolve) => {
      const socket = connect(this.port, '127.0.0.1');
      const done = (listens) => {
        socket.destroy();
        resolve(listens);
      };
      socket.once('connect', () => done(true)).once('error', () => done(false));
    });
  }
}

/** The credential of a user name, computed as a TURN server does. */
export function credentialOf(username, secret) {
  return createHmac('sha1', secret).update(username).digest('base64');
}
