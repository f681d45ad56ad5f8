// Calls through the web page, from the first ring to the text about their end.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { assertDevicesClosed, holdInitiates, talking, serverAndBrowser } from './support.mjs';

let here;
before(async () => (here = await serverAndBrowser({ args: ['--ring-timeout', '60s'] })));
after(() => here?.stop());

test('two tabs of one browser: a video call, sound and picture both ways, and its end in words', async (t) => {
  const [alice, bob] = [someone('alice'), someone('bob')];
  const browser = await here.profile(t);
  const callee = await browser.open({ me: bob });
  const caller = await browser.open({ me: alice, peer: bob });
  await caller.sees('#peer-presence', `${bob} is online`);
  await caller.picture('home');

  await caller.dial('video');
  await caller.sees('#outgoing-words', 'Ringing');
  await caller.sees('#preview-video');
  await caller.picture('ringing-out');
  await callee.sees('#incoming[open]');
  assert.equal(await callee.text('#incoming-title'), `${alice} is calling`);
  assert.equal(await callee.text('#incoming-words'), 'Video call');
  assert.equal(await callee.page.title(), `${alice} is calling`);
  await callee.picture('ringing-in');

  await callee.accept();
  await caller.inCall();
  await callee.inCall();
  await talking(caller, callee);
  await Promise.all([caller, callee].flatMap((tab) => [tab.seesPicture(), tab.hears(), tab.sees('#self-video')]));
  assert.equal(await caller.text('#stage-name'), bob);
  await caller.sees('#timer', /^0:0[1-9]$/);
  await caller.picture('in-call');

  await caller.click('#hang-up');
  await caller.ended('You ended the call.');
  await callee.ended(`${alice} ended the call.`);
  assert.match(await callee.text('#ended-detail'), /^Video call, 0:\d\d$/);
  for (const [tab, direction] of [
    [caller, 'outgoing'],
    [callee, 'incoming'],
  ]) {
    await tab.sees(`#history li[data-status="ended"][data-direction="${direction}"]`);
  }
  await callee.picture('ended');
  await Promise.all([assertDevicesClosed(caller), assertDevicesClosed(callee)]);
});

test('an audio call has sound both ways and no picture', async (t) => {
  const { caller, callee, bob } = await here.pair(t);
  await caller.dial('audio');
  await callee.sees('#incoming[open]');
  assert.equal(await callee.text('#incoming-words'), 'Audio call');
  assert.equal(
    await callee.page.locator('#accept-audio').isVisible(),
    false,
    'an audio call can be accepted in one way',
  );
  await callee.accept();
  await caller.inCall();
  await callee.inCall();
  await talking(caller, callee, { video: false });
  await Promise.all([caller.hears(), callee.hears()]);
  assert.equal((await caller.received()).video, 0);
  assert.equal(await caller.page.locator('#remote-video').isVisible(), false);
  await caller.sees('#faceless');
  await caller.picture('in-call-audio');

  await callee.click('#hang-up');
  await caller.ended(`${bob} ended the call.`);
  await callee.ended('You ended the call.');
});

test('a video call accepted with sound only: the camera joins later, and goes again', async (t) => {
  const { caller, callee } = await here.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await callee.click('#accept-audio');
  await Promise.all([caller.inCall(), callee.inCall()]);
  await callee.receives({ video: true });
  await caller.receives({ video: false });
  assert.equal(await caller.page.locator('#remote-video').isVisible(), false);

  await callee.click('#camera');
  await caller.seesPicture();
  await talking(caller, callee);

  await callee.click('#camera');
  await caller.missing('#remote-video');
  await caller.sees('#faceless');
  await talking(caller, callee, { video: false });
});

test('what the caller sent while it rang is used when the call is accepted', async (t) => {
  const { caller, callee } = await here.pair(t);
  // Without the callee's candidates, only the caller's can connect the two.
  await callee.page.evaluate(() => (globalThis.switchboard.signaling.iceCandidate = async () => {}));
  await caller.dial('audio');
  await callee.sees('#incoming[open]');
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
});

test('mute silences the microphone and says so', async (t) => {
  const { caller } = await here.call(t, { type: 'audio' });
  const mute = caller.page.locator('#mute');
  await mute.click();
  assert.equal(await mute.getAttribute('data-lit'), 'true');
  assert.equal((await mute.innerText()).trim(), 'Unmute');
  const energy = () =>
    caller.page.evaluate(async () => {
      const stats = [...(await globalThis.switchboard.phone.call.getStats()).values()];
      return stats.find(({ type, kind }) => type === 'media-source' && kind === 'audio').totalAudioEnergy;
    });
  // The fake microphone beeps every second.
  const heardInTwoSeconds = async () => {
    const before = await energy();
    const seconds = async () => Number((await caller.text('#timer')).split(':')[1]);
    const start = await seconds();
    await eventually(async () => (await seconds()) >= start + 2, 'the timer goes on');
    return (await energy()) - before;
  };
  await eventually(async () => (await heardInTwoSeconds()) < 0.0001, 'the muted microphone hears nothing');
  await mute.click();
  assert.equal(await mute.getAttribute('data-lit'), 'false');
  await eventually(async () => (await heardInTwoSeconds()) > 0.01, 'the microphone hears again');
});

test('a screen is shared in a video call, and the camera comes back after it', async (t) => {
  const { caller, callee } = await here.call(t);
  await callee.seesPicture();
  const width = () => callee.page.locator('#remote-video').evaluate((video) => video.videoWidth);
  await caller.click('#screen');
  await caller.sees('#screen[data-lit="true"]');
  await callee.page.waitForFunction(() => document.getElementById('remote-video').videoWidth > 320, null, {
    polling: 100,
  });
  await talking(caller, callee);
  await caller.picture('sharing');
  await callee.picture('watching-a-screen');
  await caller.click('#screen');
  await caller.sees('#screen[data-lit="false"]');
  await callee.page.waitForFunction(() => document.getElementById('remote-video').videoWidth <= 320, null, {
    polling: 100,
  });
  assert.ok((await width()) > 0);
  await talking(caller, callee);
});

test('a screen is shared in an audio call', async (t) => {
  const { caller, callee } = await here.call(t, { type: 'audio' });
  await callee.click('#screen');
  await caller.seesPicture();
  await talking(caller, callee, { video: false });
  await callee.click('#screen');
  await caller.missing('#remote-video');
  await talking(caller, callee, { video: false });
});

test('decline', async (t) => {
  const { caller, callee, bob } = await here.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await callee.click('#decline');
  await callee.ended('You declined the call.');
  await caller.ended(`${bob} declined the call.`);
  await caller.sees('#history li', 'Declined');
  await callee.sees('#history li', 'You declined');
});

test('cancel: the ringing stops, and the callee has a missed call to call back', async (t) => {
  const { caller, callee, alice } = await here.pair(t);
  await caller.dial('audio');
  await callee.sees('#incoming[open]');
  await caller.click('#cancel');
  await caller.ended('You cancelled the call.');
  await callee.ended(`${alice} stopped calling.`);
  assert.equal(await callee.page.locator('#incoming').isVisible(), false);
  await callee.sees('#history li[data-missed="true"]', 'Missed');
  await caller.sees('#history li[data-missed="false"]', 'Cancelled');
  await callee.picture('missed');

  await callee.click('#history li[data-missed="true"] button');
  await caller.sees('#incoming[open]');
  assert.equal(await caller.text('#incoming-words'), 'Audio call');
  await caller.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
});

test('busy', async (t) => {
  const { bob } = await here.call(t);
  const carol = await (await here.profile(t)).open({ me: someone('carol'), peer: bob });
  await carol.sees('#peer-presence', `${bob} is in a call`);
  await carol.click('#call-form button[value="video"]');
  await carol.ended(`${bob} is on another call.`);
  await carol.sees('#history li', 'Busy');
});

test('offline', async (t) => {
  const nobody = someone('nobody');
  const carol = await (await here.profile(t)).open({ me: someone('carol'), peer: nobody });
  await carol.sees('#peer-presence', `${nobody} is offline`);
  await carol.click('#call-form button[value="video"]');
  await carol.ended(`${nobody} is offline right now.`);
  await carol.sees('#history li', 'Was offline');
  await carol.picture('offline');
});

test('nobody answers', async (t) => {
  const impatient = await serverAndBrowser({ args: ['--ring-timeout', '1500ms'] });
  t.after(() => impatient.stop());
  const { caller, callee, alice, bob } = await impatient.pair(t);
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await caller.ended(`${bob} did not answer.`);
  await callee.ended(`You missed a call from ${alice}.`);
  await callee.sees('#history li[data-missed="true"]');
  await caller.sees('#history li', 'No answer');
});

test('both dial each other at the same moment: one call, no questions', async (t) => {
  const { caller: one, callee: other, alice } = await here.pair(t);
  await other.page.locator('#peer').fill(alice);
  // Both are delayed until both have dialled, so that neither knows of the other's call.
  for (const tab of [one, other]) {
    await tab.page.evaluate(holdInitiates);
    await tab.dial('video');
    await tab.state('outgoing');
  }
  await Promise.all([one, other].map((tab) => tab.page.evaluate(() => globalThis.release())));
  await Promise.all([one.inCall(), other.inCall()]);
  await talking(one, other);
  await one.click('#hang-up');
  await one.ended('You ended the call.');
  await other.ended(`${alice} ended the call.`);
});

for (const cancelled of [false, true]) {
  test(`a call that comes in while another is being dialled${cancelled ? ' and then cancelled' : ''} rings after it`, async (t) => {
    const { caller: one, callee: other, alice, bob } = await here.pair(t);
    await one.page.locator('#peer').fill(someone('nobody'));
    await other.page.locator('#peer').fill(alice);
    await one.page.evaluate(holdInitiates);
    await one.dial('audio');
    await one.state('outgoing');
    await other.dial('video');
    await other.sees('#outgoing-words', 'Ringing');
    if (cancelled) await one.click('#cancel');
    await one.page.evaluate(() => globalThis.release());
    await one.sees('#incoming-title', `${bob} is calling`);
    await one.accept();
    await Promise.all([one.inCall(), other.inCall()]);
    await talking(one, other);
  });
}

test('calling oneself is refused in words', async (t) => {
  const carol = someone('carol');
  const tab = await (await here.profile(t)).open({ me: carol, peer: carol });
  await tab.click('#call-form button[value="audio"]');
  await tab.sees('#notice', 'That is you.');
});
