// Calls across reloads, closed tabs and lost connections.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { scrape } from '../support/metrics.mjs';
import { PATIENCE_MS, talking, serverAndBrowser } from './support.mjs';

let here;
before(async () => (here = await serverAndBrowser({ args: ['--ring-timeout', '60s', '--reconnect-grace', '30s'] })));
after(() => here?.stop());

test('a second tab of the callee: it rings in both, and stops in the one that did not answer', async (t) => {
  const { caller, callee, calleeProfile, bob } = await here.pair(t);
  const second = await calleeProfile.open({ me: bob });
  await caller.dial('video');
  await caller.sees('#outgoing-words', 'Ringing on 2 devices');
  await Promise.all([callee.sees('#incoming[open]'), second.sees('#incoming[open]')]);
  await second.accept();
  await callee.ended('You answered on another device.');
  await callee.missing('#incoming');
  await Promise.all([caller.inCall(), second.inCall()]);
  await talking(caller, second);
});

test('declined in one tab, it stops in the other too', async (t) => {
  const { caller, callee, calleeProfile, bob } = await here.pair(t);
  const second = await calleeProfile.open({ me: bob });
  await caller.dial('audio');
  await Promise.all([callee.sees('#incoming[open]'), second.sees('#incoming[open]')]);
  await second.click('#decline');
  await callee.ended('You declined on another device.');
  await callee.missing('#incoming');
  await caller.ended(`${bob} declined the call.`);
});

test('a tab that is opened while it rings, rings as well and can answer', async (t) => {
  const { caller, callee, calleeProfile, bob } = await here.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  const second = await calleeProfile.open({ me: bob });
  await second.accept();
  await callee.ended('You answered on another device.');
  await talking(caller, second);
});

test('a duplicated tab is a device of its own and leaves the call alone', async (t) => {
  const { caller, callee, callerProfile, alice } = await here.call(t);
  // Browsers copy sessionStorage into a duplicate.
  const stored = await caller.page.evaluate(() => JSON.stringify({ ...sessionStorage }));
  await callerProfile.context.addInitScript((copied) => {
    if (sessionStorage.length === 0)
      for (const [key, value] of Object.entries(JSON.parse(copied))) sessionStorage.setItem(key, value);
  }, stored);
  const duplicate = await callerProfile.open();
  await duplicate.connected();
  assert.equal(await duplicate.text('#me-name'), alice, 'it is the same person');
  const device = (tab) => tab.page.evaluate(() => sessionStorage.getItem('switchboard.device'));
  assert.notEqual(await device(duplicate), await device(caller));
  await duplicate.state('idle');
  await talking(caller, callee);
  assert.equal(await caller.page.locator('body').getAttribute('data-call'), 'active');
});

for (const who of ['caller', 'callee']) {
  test(`the ${who} reloads the page in a call: sound and picture come back both ways without a click`, async (t) => {
    const people = await here.call(t);
    const reloading = people[who];
    const other = who === 'caller' ? people.callee : people.caller;
    await talking(reloading, other);
    await reloading.page.reload();
    await Promise.all([reloading.inCall(), other.inCall()]);
    await talking(reloading, other);
    await Promise.all([reloading, other].flatMap((tab) => [tab.seesPicture(), tab.hears(), tab.sees('#self-video')]));

    await other.click('#hang-up');
    await other.ended('You ended the call.');
    await reloading.ended(`${who === 'caller' ? people.bob : people.alice} ended the call.`);
  });
}

for (const who of ['caller', 'callee']) {
  test(`an audio call to which the other side added its picture, after the ${who} reloads`, async (t) => {
    // The reloaded page offers sound only, which does not match the connection of the other page.
    const people = await here.call(t, { type: 'audio' });
    const [reloading, other] = who === 'caller' ? [people.caller, people.callee] : [people.callee, people.caller];
    await other.click('#camera');
    await reloading.seesPicture();
    await reloading.page.reload();
    await Promise.all([reloading.inCall(), other.inCall()]);
    await reloading.seesPicture();
    await reloading.receives({ video: true });
    await other.receives({ video: false });
  });
}

test('both reload the page at the same time', async (t) => {
  const { caller, callee } = await here.call(t);
  await Promise.all([caller.page.reload(), callee.page.reload()]);
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
});

test('a muted microphone and a camera that is off stay so after a reload', async (t) => {
  const { caller, callee } = await here.call(t);
  await caller.click('#mute');
  await caller.click('#camera');
  await callee.missing('#remote-video');
  await caller.page.reload();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await caller.receives({ video: true });
  assert.equal(await caller.page.locator('#mute').getAttribute('data-lit'), 'true');
  assert.equal(await caller.page.locator('#camera').getAttribute('data-lit'), 'true');
  assert.equal(await caller.page.locator('#self-video').isVisible(), false);
  assert.equal(await callee.page.locator('#remote-video').isVisible(), false);
});

test('when the devices cannot be opened after a reload, the page says so, listens, and can hang up', async (t) => {
  const { caller, callee, alice } = await here.call(t);
  await caller.page.addInitScript(() => {
    navigator.mediaDevices.getUserMedia = async () => {
      throw new DOMException('not now', 'NotAllowedError');
    };
  });
  await caller.page.reload();
  await caller.sees('#notice', 'not allowed to use your microphone');
  await caller.receives({ video: true });
  await caller.seesPicture();
  await caller.click('#hang-up');
  await caller.ended('You ended the call.');
  await callee.ended(`${alice} ended the call.`);
});

test('the caller reloads the page while it rings: it goes on ringing and can be answered', async (t) => {
  const { caller, callee } = await here.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await caller.page.reload();
  await caller.sees('#outgoing[open]');
  await caller.connected();
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
});

test('the callee reloads the page while it rings: it rings again and can be answered', async (t) => {
  const { caller, callee } = await here.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await callee.page.reload();
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
});

for (const who of ['caller', 'callee']) {
  test(`the ${who}'s network goes and comes back: both are told, and the call goes on`, async (t) => {
    const people = await here.call(t);
    const [lost, other] = who === 'caller' ? [people.caller, people.callee] : [people.callee, people.caller];
    const lostName = who === 'caller' ? people.alice : people.bob;
    await lost.page.context().setOffline(true);
    await lost.sees('#trouble', 'No connection to the server');
    await other.sees('#trouble', `${lostName} lost the connection. Waiting for them to come back`);
    await other.picture('other-away');
    await lost.page.context().setOffline(false);
    await Promise.all([lost.inCall(), other.inCall()]);
    await talking(lost, other);
    await lost.click('#camera'); // later changes arrive
    await other.missing('#remote-video');
  });
}

test('what is changed without a connection is negotiated when it is back', async (t) => {
  const { caller, callee } = await here.call(t);
  await caller.page.context().setOffline(true);
  await caller.sees('#trouble', 'No connection to the server');
  await caller.click('#camera');
  await caller.sees('#camera[data-lit="true"]');
  assert.equal(await callee.page.locator('#remote-video').isVisible(), true);
  await caller.page.context().setOffline(false);
  await callee.missing('#remote-video');
  await talking(caller, callee, { video: false });
});

test('an offer that was lost together with the connection is made again', async (t) => {
  const { caller, callee } = await here.call(t);
  await caller.page.evaluate(() => {
    const { signaling } = globalThis.switchboard;
    const offer = signaling.offer.bind(signaling);
    signaling.offer = async () => void (signaling.offer = offer); // the first one goes nowhere
  });
  await caller.click('#camera');
  await caller.sees('#camera[data-lit="true"]');
  await callee.page.context().setOffline(true);
  await caller.sees('#trouble', 'lost the connection');
  assert.equal(await callee.page.locator('#remote-video').isVisible(), true);
  await callee.page.context().setOffline(false);
  await callee.missing('#remote-video');
  await talking(caller, callee, { video: false });
});

test('hanging up without a connection ends the call for the other side when it is back', async (t) => {
  const { caller, callee, alice } = await here.call(t);
  await caller.page.context().setOffline(true);
  await caller.sees('#trouble', 'No connection to the server');
  await caller.click('#hang-up');
  await caller.ended('You ended the call.');
  await caller.sees('#connection', 'Offline, trying again');
  await caller.picture('offline-home');
  await caller.page.context().setOffline(false);
  await callee.ended(`${alice} ended the call.`);
  await caller.connected();
  await caller.state('ended');
});

test('a connection that stays away ends the call on both sides, in words', async (t) => {
  const strict = await serverAndBrowser({ args: ['--reconnect-grace', '1s'] });
  t.after(() => strict.stop());
  const { caller, callee } = await strict.call(t);
  await caller.page.context().setOffline(true);
  await callee.ended('The call ended because the connection was lost.');
  await caller.page.context().setOffline(false);
  await caller.ended('The call ended because the connection was lost.');
});

test('a restarted server takes the call up again, as the page says', async (t) => {
  const short = await serverAndBrowser();
  t.after(() => short.stop());
  const { caller, callee, alice } = await short.call(t);
  await short.server.restart();
  await Promise.all([caller.connected(), callee.connected()]);
  await talking(caller, callee);
  await caller.click('#hang-up');
  await caller.ended('You ended the call.');
  await callee.ended(`${alice} ended the call.`);
});

test('when the connection between the two fails, ICE is restarted and sound and picture come back', async (t) => {
  const keepConnections = () => {
    globalThis.connections = [];
    globalThis.RTCPeerConnection = class extends RTCPeerConnection {
      constructor(...settings) {
        super(...settings);
        globalThis.connections.push(this);
      }
    };
  };
  const { caller, callee } = await here.call(t, {
    caller: { prepare: keepConnections },
    callee: { prepare: keepConnections },
  });
  const ufrag = (tab) =>
    tab.page.evaluate(() => /a=ice-ufrag:(\S+)/.exec(globalThis.connections.at(-1).localDescription.sdp)[1]);
  const before = await Promise.all([ufrag(caller), ufrag(callee)]);
  await caller.page.evaluate(() => {
    const connection = globalThis.connections.at(-1);
    Object.defineProperty(connection, 'connectionState', { value: 'failed', configurable: true });
    connection.dispatchEvent(new Event('connectionstatechange'));
    delete connection.connectionState;
  });
  await eventually(
    async () => {
      const now = await Promise.all([ufrag(caller), ufrag(callee)]);
      return now[0] !== before[0] && now[1] !== before[1];
    },
    'new ICE credentials on both sides',
    PATIENCE_MS,
  );
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
  assert.equal(await caller.page.evaluate(() => globalThis.connections.length), 1, 'the same connection goes on');
});

test('the quality of a call is reported to the server', async (t) => {
  const { caller } = await here.call(t, {
    caller: {
      prepare: () => {
        const every = globalThis.setInterval;
        globalThis.setInterval = (run, ms, ...rest) => every(run, ms === 10_000 ? 500 : ms, ...rest);
      },
    },
  });
  const report = await caller.page.evaluate(() => {
    const { signaling } = globalThis.switchboard;
    return new Promise((resolve) => {
      const send = signaling.stats.bind(signaling);
      signaling.stats = async (payload) => {
        const answer = await send(payload);
        resolve({ payload, answer });
        return answer;
      };
    });
  });
  assert.equal(report.answer.ok, true);
  assert.equal(typeof report.payload.callId, 'string');
  for (const name of ['roundTripMs', 'lossPercent', 'jitterMs'])
    assert.equal(typeof report.payload[name], 'number', name);
  assert.equal(report.payload.candidateType, 'host');
  assert.equal(report.payload.iceState, 'connected');

  const counted = await scrape(here.server);
  const value = (name, labels) => counted.value(`switchboard_media_${name}`, labels);
  assert.ok(value('reports_total', { candidate: 'host' }) > 0);
  assert.ok(value('ice_states_total', { state: 'connected' }) > 0);
  for (const name of ['round_trip_seconds', 'loss_ratio', 'jitter_seconds']) {
    assert.ok(value(`${name}_count`, { media: 'direct' }) > 0, name);
  }
  assert.equal(value('round_trip_seconds_count', { media: 'relayed' }), 0);
});
