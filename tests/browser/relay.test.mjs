// Calls with media relayed by a TURN server, with the server's credentials.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { startCoturn } from '../support/coturn.mjs';
import { PATIENCE_MS, talking, serverAndBrowser } from './support.mjs';

const SECRET = 'the relay\u2019s secret';

let coturn;
let here;
before(async () => {
  coturn = await startCoturn(SECRET);
  here = await serverAndBrowser({ args: ['--turn-urls', coturn.url], env: { SWITCHBOARD_TURN_SECRET: SECRET } });
});
after(async () => {
  await here?.stop();
  await coturn?.stop();
});

async function pairOnRelay(t, through, prepare) {
  const [alice, bob] = [someone('alice'), someone('bob')];
  const [one, other] = [await through.profile(t), await through.profile(t)];
  const callee = await other.open({ me: bob, relay: true, prepare });
  return { callee, caller: await one.open({ me: alice, peer: bob, relay: true, prepare }) };
}

/** The selected candidate pair: the types, and the bytes in each direction. */
function way(tab) {
  return tab.page.evaluate(async () => {
    const stats = await globalThis.switchboard.phone.call.getStats();
    const transport = [...stats.values()].find(({ type }) => type === 'transport');
    const pair = stats.get(transport.selectedCandidatePairId);
    return {
      types: [stats.get(pair.localCandidateId), stats.get(pair.remoteCandidateId)].map((one) => one.candidateType),
      bytes: [pair.bytesSent, pair.bytesReceived],
    };
  });
}

test('two pages that may only use the relay talk through it', async (t) => {
  const { caller, callee } = await pairOnRelay(t, here);
  await caller.dial('video');
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
  for (const tab of [caller, callee]) {
    const { types, bytes } = await way(tab);
    assert.deepEqual(types, ['relay', 'relay']);
    await eventually(
      async () => (await way(tab)).bytes.every((now, direction) => now > bytes[direction]),
      'more bytes both ways',
      PATIENCE_MS,
    );
  }
});

test('a new way is looked for with credentials that are valid then', async (t) => {
  // Runs in the page, which believes that its credentials expire within a second or two.
  const hasty = () => {
    globalThis.connections = [];
    globalThis.RTCPeerConnection = class extends RTCPeerConnection {
      constructor(...args) {
        super(...args);
        globalThis.connections.push(this);
      }
    };
    const shorten = ({ signaling }) => {
      const ask = signaling.iceServers.bind(signaling);
      signaling.iceServers = async () => ({ ...(await ask()), ttl: 1.5 });
    };
    let session;
    Object.defineProperty(globalThis, 'switchboard', {
      get: () => session,
      set: (value) => {
        if (value) shorten(value);
        session = value;
      },
    });
  };
  const { caller, callee } = await pairOnRelay(t, here, hasty);
  await caller.dial('audio');
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  const used = () => caller.page.evaluate(() => globalThis.connections[0].getConfiguration().iceServers[0].username);
  const ice = () => caller.page.evaluate(() => /a=ice-ufrag:(\S+)/.exec(globalThis.connections[0].currentLocalDescription.sdp)[1]);
  const [username, before] = [await used(), await ice()];
  await eventually(async () => (await used()) > username, 'later credentials', PATIENCE_MS);
  await caller.page.evaluate(() => globalThis.connections[0].restartIce());
  await eventually(async () => (await ice()) !== before, 'a restart', PATIENCE_MS);
  await talking(caller, callee, { video: false });
  assert.deepEqual((await way(caller)).types, ['relay', 'relay']);
});

test('without a good credential they find no way', async (t) => {
  const wrong = await serverAndBrowser({ args: ['--turn-urls', coturn.url], env: { SWITCHBOARD_TURN_SECRET: 'another' } });
  t.after(() => wrong.stop());
  const { caller, callee } = await pairOnRelay(t, wrong);
  const errors = caller.page.evaluate(() => {
    const addIceError = RTCPeerConnection.prototype.addEventListener;
    return new Promise((resolve) => {
      const { setLocalDescription } = RTCPeerConnection.prototype;
      RTCPeerConnection.prototype.setLocalDescription = function (...args) {
        addIceError.call(this, 'icecandidateerror', ({ errorCode }) => resolve(errorCode));
        return setLocalDescription.apply(this, args);
      };
    });
  });
  await caller.dial('audio');
  await callee.accept();
  assert.equal(await errors, 401);
  assert.notEqual(await caller.page.locator('#stage').getAttribute('data-media'), 'connected');
});
