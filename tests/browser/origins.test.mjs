// Pages of other origins in a real browser: one that is configured, and one that is not.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { someone } from '../support/check.mjs';
import { join } from '../support/client.mjs';
import { startServer } from '../support/server.mjs';
import { serverAndBrowser } from './support.mjs';

let elsewhere; // another site: an empty page
let origin;
let closed; // a server without configured origins
let here; // a server with that site's origin
before(async () => {
  elsewhere = createServer((_, response) => {
    response.writeHead(200, { 'content-type': 'text/html' });
    response.end('<!doctype html><title>another site</title>');
  }).listen(0, '127.0.0.1');
  await once(elsewhere, 'listening');
  origin = `http://127.0.0.1:${elsewhere.address().port}`;
  closed = await startServer();
  here = await serverAndBrowser({ args: ['--cors-origins', origin] });
});
after(async () => {
  await here?.stop();
  await closed?.stop();
  elsewhere.closeAllConnections();
  elsewhere.close();
});

/** A page of the other site that has loaded the client library from `server`. */
async function foreignPage(t, server) {
  const { context } = await here.profile(t);
  const page = await context.newPage();
  await page.goto(origin);
  await page.addScriptTag({ url: `${server.url}/socket.io/socket.io.js` });
  return page;
}

/** The result of a request of that page. */
function ask(page, url, options) {
  return page.evaluate(
    async ([url, options]) => {
      try {
        const response = await fetch(url, options);
        return { type: response.type, status: response.status, body: await response.text() };
      } catch (error) {
        return { error: error.name };
      }
    },
    [url, options],
  );
}

/** Whether that page gets a working socket over this transport. */
function opensSocket(page, url, transport) {
  return page.evaluate(
    ([url, transport, userId]) =>
      new Promise((resolve) => {
        const socket = globalThis.io(url, { auth: { userId }, transports: [transport], withCredentials: true, forceNew: true, reconnection: false });
        const done = (result) => {
          socket.disconnect();
          resolve(result);
        };
        socket.on('connect', async () => done((await socket.emitWithAck('ice:servers')).ok));
        socket.on('connect_error', () => done(false));
      }),
    [url, transport, someone('anna')],
  );
}

const JSON_POST = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' };

test('a page of an origin that is named uses the API and the socket', async (t) => {
  const { server } = here;
  const page = await foreignPage(t, server);
  const read = await ask(page, `${server.url}/v1/presence?userIds=anna`, { credentials: 'include' });
  assert.deepEqual([read.type, read.status, JSON.parse(read.body)], ['cors', 200, { presence: { anna: 'offline' } }]);
  const post = await ask(page, `${server.url}/v1/admin/calls/x/end`, JSON_POST);
  assert.deepEqual([post.type, post.status], ['cors', 400], 'the preflight is passed, and the problem can be read');
  for (const transport of ['websocket', 'polling']) assert.equal(await opensSocket(page, server.url, transport), true, transport);
});

test('a page of another origin can read nothing, change nothing, and open no socket', async (t) => {
  const page = await foreignPage(t, closed);
  assert.deepEqual(await ask(page, `${closed.url}/v1/presence?userIds=anna`), { error: 'TypeError' });
  assert.deepEqual(await ask(page, `${closed.url}/v1/admin/calls/x/end`, JSON_POST), { error: 'TypeError' });
  for (const transport of ['websocket', 'polling']) assert.equal(await opensSocket(page, closed.url, transport), false, transport);

  const anna = await join(t, closed, { userId: someone('anna') });
  const disconnect = `${closed.url}/v1/admin/users/${anna.userId}/disconnect`;
  const sent = await ask(page, disconnect, { method: 'POST', mode: 'no-cors' });
  assert.equal(sent.type, 'opaque', 'it reached the server');
  await anna.nothingElse();
  assert.ok(anna.socket.connected);
});

test('no other site can put the page into a frame', async (t) => {
  const { server } = here;
  const page = await foreignPage(t, server);
  const refused = page.waitForEvent('console', (message) => /frame-ancestors|X-Frame-Options/.test(message.text()));
  await page.evaluate((url) => {
    const frame = document.createElement('iframe');
    frame.src = url;
    document.body.append(frame);
  }, server.url);
  assert.match((await refused).text(), /Refused|refused|violates/);
});

test('the page may open camera, microphone and screen, and nothing else that it does not need', async (t) => {
  const tab = await (await here.profile(t)).open({ me: someone('anna') });
  const allowed = await tab.page.evaluate(() => document.featurePolicy.allowedFeatures());
  for (const one of ['camera', 'microphone', 'display-capture']) assert.ok(allowed.includes(one), one);
  for (const one of ['geolocation', 'payment', 'usb']) assert.ok(!allowed.includes(one), one);
});
