// The platform's backend for authorization: a real HTTP server whose replies a test sets.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';

/** Starts the backend on `port`, or on a free one. `tls` is `{key, cert}`. */
export async function startBackend({ port = 0, tls } = {}) {
  const backend = new Backend(tls);
  await backend.listen(port);
  return backend;
}

export const YES = (response) => answer(response, { allow: true });
export const no = (reason) => (response) => answer(response, { allow: false, reason });

export function answer(response, body, { status = 200, headers = {} } = {}) {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(typeof body === 'string' ? body : JSON.stringify(body));
}

/** A delayed reply: `asked` resolves when the request has arrived, and `release()` sends the reply. */
export function held(then = YES) {
  let release;
  const released = new Promise((resolve) => (release = resolve));
  let arrived;
  const asked = new Promise((resolve) => (arrived = resolve));
  const answers = async (response) => {
    arrived();
    await released;
    then(response);
  };
  return { answers, asked, release };
}

class Backend {
  /** The requests so far: `{from, to, callType, callerInfo?}`. */
  questions = [];
  /** Method, path and headers of the requests. */
  requests = [];
  mostAtOnce = 0;
  #answers = new Map();
  #atOnce = 0;

  constructor(tls) {
    this.scheme = tls ? 'https' : 'http';
    this.make = (serve) => (tls ? createTlsServer(tls, serve) : createServer(serve));
  }

  async listen(port) {
    this.server = this.make((request, response) => this.#serve(request, response));
    this.server.listen(port, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = this.server.address().port;
    this.url = `${this.scheme}://127.0.0.1:${this.port}/may-call`;
  }

  /** Sets the reply about calls of this user; the default is to allow. */
  answers(from, how) {
    this.#answers.set(from, how);
  }

  asked(from) {
    return this.questions.filter((question) => question.from === from);
  }

  async stop() {
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, 'close');
  }

  async #serve(request, response) {
    let body = '';
    for await (const chunk of request.setEncoding('utf8')) body += chunk;
    const { method, url, headers } = request;
    this.requests.push({ method, url, headers });
    if (method !== 'POST') return YES(response);
    const question = JSON.parse(body);
    this.questions.push(question);
    this.#atOnce += 1;
    this.mostAtOnce = Math.max(this.mostAtOnce, this.#atOnce);
    response.on('close', () => (this.#atOnce -= 1));
    return (this.#answers.get(question.from) ?? YES)(response);
  }
}
