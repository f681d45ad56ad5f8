// The page around the calls: identity, history, error texts, keyboard, small and dark screens.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { eventually, someone } from '../support/check.mjs';
import { SECRET, tokenOf } from '../support/tokens.mjs';
import { talking, serverAndBrowser } from './support.mjs';

let here;
before(async () => (here = await serverAndBrowser({ args: ['--ring-timeout', '60s'] })));
after(() => here?.stop());

const PHONE = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };

test('who you are: asked once, kept over a reload, suggested in a new tab, and changed', async (t) => {
  const carol = someone('carol');
  const browser = await here.profile(t);
  const tab = await browser.open();
  await tab.sees('#join');
  await tab.picture('join');
  await tab.click('#join button');
  await tab.sees('#name-problem', 'Please enter a name.');
  await tab.page.locator('#name').fill('é'.repeat(65));
  await tab.click('#join button');
  await tab.sees('#name-problem', 'That name is too long.');
  await tab.page.locator('#name').fill(`  ${carol} `);
  await tab.page.keyboard.press('Enter');
  await tab.connected();
  assert.equal(await tab.text('#me-name'), carol);

  await tab.page.reload();
  await tab.connected();
  assert.equal(await tab.text('#me-name'), carol);

  const second = await browser.open();
  assert.equal(await second.page.locator('#name').inputValue(), carol, 'suggested, but asked');
  const dave = someone('dave');
  await second.page.locator('#name').fill(dave);
  await second.page.keyboard.press('Enter');
  await second.connected();
  await tab.page.locator('#peer').fill(dave);
  await tab.sees('#peer-presence', `${dave} is online`);

  await second.click('#leave');
  await tab.sees('#peer-presence', `${dave} is offline`);
  await second.page.reload();
  await second.sees('#join');
});

test('the address may say who you are and whom to call; a change of name takes it out', async (t) => {
  const [carol, dave] = [someone('carol'), someone('dave')];
  const tab = await (await here.profile(t)).open({ me: carol, peer: dave });
  assert.equal(await tab.text('#me-name'), carol);
  assert.equal(await tab.page.locator('#peer').inputValue(), dave);
  await tab.click('#leave');
  await tab.sees('#join');
  assert.equal(new URL(tab.page.url()).searchParams.has('me'), false);
});

test('a token in the address says who you are, where tokens are checked', async (t) => {
  const strict = await serverAndBrowser({ args: ['--auth', 'jwt', '--jwt-secret', SECRET] });
  t.after(() => strict.stop());
  const [carol, dave] = [someone('cärol'), someone('dave')];
  const tab = await (await strict.profile(t)).open({ token: tokenOf(carol), peer: dave });
  assert.equal(await tab.text('#me-name'), carol);
  assert.equal(new URL(tab.page.url()).searchParams.has('token'), false, 'it is not left to be seen');
  await tab.page.reload();
  await tab.connected();
  assert.equal(await tab.text('#me-name'), carol);
  const other = await (await strict.profile(t)).open({ token: tokenOf(dave) });
  await tab.sees('#peer-presence', `${dave} is online`);
  await tab.sees('#history-empty', 'No calls yet.');

  await other.click('#leave');
  await other.page.locator('#name').fill(dave);
  await other.page.keyboard.press('Enter');
  await other.sees('#join', 'a token is needed');
});

test('a link with a token makes nobody else of a tab that has a good one of its own', async (t) => {
  const strict = await serverAndBrowser({ args: ['--auth', 'jwt', '--jwt-secret', SECRET] });
  t.after(() => strict.stop());
  const [carol, mallory] = [someone('carol'), someone('mallory')];
  const tab = await (await strict.profile(t)).open({ token: tokenOf(carol, { seconds: 3_600 }) });
  const own = () => tab.page.evaluate(() => sessionStorage.getItem('switchboard.token'));
  const follow = async (token) => {
    await tab.page.goto(`${strict.server.url}/?token=${token}`);
    await tab.connected();
    assert.equal(new URL(tab.page.url()).searchParams.has('token'), false);
    return tab.text('#me-name');
  };
  assert.equal(await follow(tokenOf(mallory)), carol);
  const renewed = tokenOf(carol, { seconds: 7_200 });
  assert.equal(await follow(renewed), carol);
  assert.equal(await own(), renewed, 'a newer one of the same user takes its place');
  const over = tokenOf(carol, { seconds: -60 });
  await tab.page.evaluate((token) => sessionStorage.setItem('switchboard.token', token), over);
  assert.equal(await follow(tokenOf(mallory)), mallory, 'one that is over is no use');
});

test('an empty history tells whoever is alone how to try it', async (t) => {
  const carol = someone('carol');
  const browser = await here.profile(t);
  const tab = await browser.open({ me: carol });
  await tab.sees('#history-empty', 'No calls yet.');
  const [page] = await Promise.all([browser.context.waitForEvent('page'), tab.click('#try-link')]);
  await page.locator('#connection[data-state="connected"]').waitFor();
  assert.equal(await page.locator('#me-name').innerText(), 'bob');
  assert.equal(await page.locator('#peer').inputValue(), carol);
  await page.close();
});

test('the history: newest first, older calls by the page, missed calls marked, a click calls back', async (t) => {
  const [alice, bob] = [someone('alice'), someone('bob')];
  const caller = await (await here.profile(t)).open({ me: alice });
  const calls = 25;
  await caller.page.evaluate(
    async ([toUserId, count]) => {
      const { signaling } = globalThis.switchboard;
      for (let made = 0; made < count; made += 1) {
        await signaling.initiate({ toUserId, callType: 'audio', clientCallId: `offline ${made}` }).catch(() => {});
      }
    },
    [bob, calls],
  );
  const callee = await (await here.profile(t)).open({ me: bob });
  const rows = callee.page.locator('#history li');
  await eventually(async () => (await rows.count()) === 20, 'the first page');
  assert.equal(await rows.first().getAttribute('data-missed'), 'true');
  assert.match(
    await rows.first().innerText(),
    new RegExp(`${alice}\\s+Incoming,\\s+Missed, you were offline\\s+Audio call`),
  );
  await callee.sees('#history h3', 'Today');
  await callee.click('#history-more');
  await eventually(async () => (await rows.count()) === calls, 'all calls');
  await callee.missing('#history-more');
  const ids = await rows.evaluateAll((items) => items.map(({ dataset }) => dataset.callId));
  assert.equal(new Set(ids).size, calls, 'each once');
  const times = await rows.locator('time').evaluateAll((items) => items.map(({ dateTime }) => dateTime));
  assert.deepEqual(times, [...times].sort().reverse(), 'newest first');
  await callee.page.evaluate(() => scrollTo(0, 0));
  await callee.picture('history');

  await rows.first().locator('button').click();
  await caller.sees('#incoming[open]');
  assert.equal(await caller.text('#incoming-title'), `${bob} is calling`);
  await caller.click('#decline');
});

test('from the keyboard alone: call, decline by Escape, cancel by Escape, answer, and hang up', async (t) => {
  const { caller, callee, alice, bob } = await here.pair(t);
  const focused = (tab) => tab.page.evaluate(() => document.activeElement.id || document.activeElement.value);
  const tabTo = async (tab, id) => {
    for (let presses = 0; presses < 12; presses += 1) {
      await tab.page.keyboard.press('Tab');
      if ((await focused(tab)) === id) return;
    }
    assert.fail(`${id} was not reached by the Tab key, but ${await focused(tab)}`);
  };

  await tabTo(caller, 'peer');
  await caller.page.keyboard.press('Enter');
  await callee.sees('#incoming[open]');
  // Typing while it begins to ring must not answer by accident.
  assert.equal(await focused(callee), 'incoming-title');
  await callee.page.keyboard.press('Enter');
  await callee.page.keyboard.press('Escape');
  await callee.ended('You declined the call.');
  await caller.ended(`${bob} declined the call.`);

  await tabTo(caller, 'call-again');
  await caller.page.keyboard.press('Enter');
  await callee.sees('#incoming[open]');
  await caller.sees('#outgoing[open]');
  await caller.page.keyboard.press('Escape');
  await caller.ended('You cancelled the call.');
  await callee.ended(`${alice} stopped calling.`);

  await tabTo(callee, 'call-again');
  await callee.page.keyboard.press('Enter');
  await caller.sees('#incoming[open]');
  // The focus stays in the dialog.
  for (let presses = 0; presses < 6; presses += 1) {
    await caller.page.keyboard.press('Tab');
    const where = await caller.page.evaluate(
      () => document.activeElement.closest('dialog')?.id ?? document.activeElement.tagName,
    );
    assert.ok(['incoming', 'BODY'].includes(where), `the focus went to ${where}`);
  }
  await tabTo(caller, 'accept');
  await caller.picture('keyboard-focus');
  await caller.page.keyboard.press('Enter');
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
  await tabTo(caller, 'mute');
  await caller.page.keyboard.press('Space');
  await caller.sees('#mute[data-lit="true"]');
  await tabTo(caller, 'hang-up');
  await caller.page.keyboard.press('Enter');
  await caller.ended('You ended the call.');
  assert.equal(await focused(caller), 'ended-title', 'the focus goes to what ended the call');
});

for (const scheme of ['light', 'dark']) {
  test(`on a phone, ${scheme}: nothing is cut off or scrolls sideways, in any state`, async (t) => {
    const { caller, callee } = await here.pair(t, { options: { ...PHONE, colorScheme: scheme } });
    const fits = async (tab, name) => {
      const { scroll, outside } = await tab.page.evaluate(() => ({
        scroll: document.documentElement.scrollWidth - innerWidth,
        outside: [...document.querySelectorAll('button, input, h1, h2, video, dialog, .card')]
          .filter((part) => part.checkVisibility())
          .filter((part) => {
            const { left, right } = part.getBoundingClientRect();
            const margin = part.matches('.card') ? 12 : 0;
            return left < margin || right > innerWidth - margin;
          })
          .map((part) => part.id || part.outerHTML),
      }));
      const bar = await tab.page.locator('.bar').boundingBox();
      assert.ok(bar === null || bar.height < 76, `${name}: the line across the top stays one line`);
      assert.ok(scroll <= 0, `${name}: scrolls sideways by ${scroll}`);
      assert.deepEqual(outside, [], `${name}: outside of the screen`);
      await tab.picture(`phone-${scheme}-${name}`);
    };
    const reachable = async (tab, ids) => {
      for (const id of ids) {
        const { y, width, height } = await tab.page.locator(id).boundingBox();
        assert.ok(y > PHONE.viewport.height / 2, `${id} is in the lower half, at ${y}`);
        assert.ok(y + height <= PHONE.viewport.height, `${id} is on the screen`);
        assert.ok(Math.min(width, height) >= 44, `${id} is large enough for a thumb`);
      }
    };

    await fits(caller, 'home');
    await caller.dial('video');
    await callee.sees('#incoming[open]');
    await caller.sees('#preview-video');
    await fits(caller, 'ringing-out');
    await fits(callee, 'ringing-in');
    await reachable(caller, ['#cancel']);
    await reachable(callee, ['#accept', '#accept-audio', '#decline']);
    await callee.accept();
    await Promise.all([caller.inCall(), callee.inCall()]);
    await callee.seesPicture();
    await caller.seesPicture();
    await fits(caller, 'in-call');
    await reachable(caller, ['#mute', '#camera', '#hang-up']);
    await caller.click('#hang-up');
    await callee.state('ended');
    await caller.sees('#history li');
    await fits(caller, 'ended');
  });
}

test('on a phone on its side, the controls are on the screen', async (t) => {
  const { caller, callee } = await here.pair(t, { options: { ...PHONE, viewport: { width: 740, height: 360 } } });
  const onScreen = async (tab, ids) => {
    for (const id of ids) {
      const { y, height } = await tab.page.locator(id).boundingBox();
      assert.ok(y >= 0 && y + height <= 360, `${id} is on the screen, at ${y} to ${y + height}`);
    }
  };
  await caller.dial('video');
  await callee.sees('#incoming[open]');
  await caller.sees('#preview-video');
  await caller.picture('phone-side-ringing-out');
  await callee.picture('phone-side-ringing-in');
  await onScreen(caller, ['#outgoing-title', '#cancel']);
  await onScreen(callee, ['#incoming-title', '#accept', '#decline']);
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await caller.seesPicture();
  await caller.picture('phone-side-in-call');
  await onScreen(caller, ['#stage-name', '#self-video', '#mute', '#hang-up']);
});

test('dark, on a desktop', async (t) => {
  const { caller, callee } = await here.pair(t, { options: { colorScheme: 'dark' } });
  await caller.dial('audio');
  await callee.sees('#incoming[open]');
  await callee.picture('dark-ringing');
  const colour = await callee.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.ok(
    colour
      .match(/\d+/g)
      .slice(0, 3)
      .every((part) => Number(part) < 60),
    `the background is dark: ${colour}`,
  );
  await callee.click('#decline');
  await caller.sees('#history li');
  await caller.picture('dark-home');
});

test('who asks for less motion gets none', async (t) => {
  const { caller } = await here.pair(t, { options: { reducedMotion: 'reduce' } });
  await caller.dial('audio');
  const animation = await caller.page.evaluate(
    () => getComputedStyle(document.querySelector('#outgoing .pulse'), '::before').animationName,
  );
  assert.equal(animation, 'none');
});

const refuse = (name) =>
  `navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', '${name}'); };`;

test('a caller whose devices are refused is told so, and nobody is rung', async (t) => {
  const { caller, callee } = await here.pair(t, { caller: { prepare: { content: refuse('NotAllowedError') } } });
  await caller.click('#call-form button[value="video"]');
  await caller.sees('#notice', 'not allowed to use your microphone or camera');
  await caller.picture('devices-refused');
  await caller.state('idle');
  await callee.state('idle');
  await caller.click('#notice-close');
  await caller.missing('#notice');
});

test('a callee whose devices are refused is told so in the dialog, and can still decline', async (t) => {
  const { caller, callee, bob } = await here.pair(t, { callee: { prepare: { content: refuse('NotReadableError') } } });
  await caller.dial('audio');
  await callee.accept();
  await callee.sees('#incoming-problem', 'could not be opened');
  await callee.picture('devices-refused-ringing');
  await caller.state('outgoing');
  await callee.click('#decline');
  await caller.ended(`${bob} declined the call.`);
});

test('an insecure page says why it cannot call', async (t) => {
  const { caller } = await here.pair(t, {
    caller: { prepare: () => Object.defineProperty(navigator, 'mediaDevices', { value: undefined }) },
  });
  await caller.click('#call-form button[value="audio"]');
  await caller.sees('#notice', 'Calls need a secure page');
});

test('a server that refuses the page says why, and one can try again', async (t) => {
  const tab = await (
    await here.profile(t)
  ).open({ prepare: () => sessionStorage.setItem('switchboard.device', 'not a device id') });
  await tab.page.locator('#name').fill(someone('carol'));
  await tab.page.keyboard.press('Enter');
  await tab.sees('#name-problem', 'The server did not understand the request');
  await tab.sees('#join');
});

test('where websockets are blocked, calls work over polling', async (t) => {
  const blocked = () => {
    globalThis.WebSocket = class {
      constructor() {
        setTimeout(() => this.onerror?.(new Event('error')));
      }
      close() {}
    };
  };
  const { caller, callee, alice } = await here.pair(t, { caller: { prepare: blocked }, callee: { prepare: blocked } });
  await caller.dial('video');
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await talking(caller, callee);
  await caller.click('#hang-up');
  await callee.ended(`${alice} ended the call.`);
});

test('without a camera, a video call still has sound both ways and the other picture', async (t) => {
  const { caller, callee } = await here.pair(t, {
    callee: {
      prepare: () => {
        const devices = navigator.mediaDevices;
        const open = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async (wanted) => {
          if (wanted.video) throw new DOMException('no camera', 'NotFoundError');
          return open(wanted);
        };
      },
    },
  });
  await caller.dial('video');
  await callee.accept();
  await Promise.all([caller.inCall(), callee.inCall()]);
  await callee.sees('#notice', 'Your camera could not be opened.');
  await callee.receives({ video: true });
  await caller.receives({ video: false });
});

test('every reason to end and every error has its own sentence', async (t) => {
  const tab = await (await here.profile(t)).open();
  const { ends, errors } = await tab.page.evaluate(async () => {
    const { endWords, problemWords } = await import('/js/words.js');
    const reasons = [
      'cancelled',
      'no_answer',
      'busy',
      'offline',
      'declined',
      'completed',
      'connection_lost',
      'superseded',
      'terminated',
      'max_duration',
      'answered_elsewhere',
      'declined_elsewhere',
      'busy_elsewhere',
      'resumed_elsewhere',
    ];
    const types = [
      'RECIPIENT_OFFLINE',
      'UNAUTHENTICATED',
      'FORBIDDEN',
      'INVALID_PAYLOAD',
      'PAYLOAD_TOO_LARGE',
      'NO_ACTIVE_CALL',
      'ALREADY_ANSWERED',
      'CALL_IN_PROGRESS',
      'GLARE',
      'SELF_CALL',
      'RATE_LIMITED',
      'TEMPORARILY_UNAVAILABLE',
    ];
    const call = (reason, direction) => ({
      otherName: 'Ann',
      type: 'video',
      direction,
      ended: { reason, byMe: false, answered: false, duration: 0 },
    });
    return {
      ends: ['outgoing', 'incoming'].map((direction) =>
        reasons.map((reason) => endWords(call(reason, direction)).title),
      ),
      errors: types.map((type) => problemWords({ type, message: 'why', retryAfterMs: 1500 })),
    };
  });
  for (const sentences of [...ends, errors]) {
    assert.equal(new Set(sentences).size, sentences.length, `all differ: ${sentences.join(' | ')}`);
    for (const sentence of sentences) {
      assert.doesNotMatch(sentence, /undefined|[a-z]_[a-z]|Something went wrong|^The call ended\.$/);
      assert.match(sentence, /[.:] ?\w*$/);
    }
  }
});
