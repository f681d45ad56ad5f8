// Browsers, tabs and users for the tests of the web page.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { eventually, someone } from '../support/check.mjs';
import { USUAL_LIMITS, startServer } from '../support/server.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';

const CHROMIUM_FLAGS = [
  '--no-sandbox', // the tests may run as root
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-default-apps',
  '--disable-dev-shm-usage',
  '--mute-audio',
  '--autoplay-policy=no-user-gesture-required',
  '--use-fake-ui-for-media-stream', // says yes to camera, microphone and screen
  '--use-fake-device-for-media-stream',
];

/** Bound on waiting for a condition. A passing test never reaches it. */
export const PATIENCE_MS = 20_000;

/**
 * One server and one browser for the tests of a file, which run sequentially, each with users of its own.
 */
export async function serverAndBrowser({ args = [], env = {}, flags = [] } = {}) {
  const server = await startServer({ args, env: { ...USUAL_LIMITS, ...env } });
  try {
    const browser = await chromium.launch({
      executablePath: CHROMIUM,
      headless: true,
      args: [...CHROMIUM_FLAGS, ...flags],
    });
    return new ServerAndBrowser(server, browser);
  } catch (error) {
    await server.stop();
    throw error;
  }
}

class ServerAndBrowser {
  constructor(server, browser) {
    this.server = server;
    this.browser = browser;
  }

  /** A browser context of its own: its tabs share storage with each other and nobody else. */
  async profile(t, options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1200, height: 760 }, ...options });
    context.setDefaultTimeout(PATIENCE_MS);
    await context.addInitScript(modestMedia);
    t.after(() => context.close());
    const profile = {
      context,
      /** A new tab. With `me` or `token` it has joined; `prepare` runs in the page before its scripts. */
      open: async ({ me, token, peer, relay, prepare } = {}) => {
        const page = await context.newPage();
        const tab = new Tab(page);
        if (prepare) await page.addInitScript(prepare);
        t.after(() => assert.deepEqual(tab.complaints, [], `${me}: the browser complained`));
        const query = new URLSearchParams({
          ...(me && { me }),
          ...(token && { token }),
          ...(peer && { peer }),
          ...(relay && { relay: '' }),
        });
        await page.goto(`${this.server.url}/?${query}`);
        if (me || token) await tab.connected();
        return tab;
      },
    };
    return profile;
  }

  /** Two users who can call each other, each with a browser of their own. */
  async pair(t, { caller = {}, callee = {}, options } = {}) {
    const [alice, bob] = [someone('alice'), someone('bob')];
    const callerProfile = await this.profile(t, options);
    const calleeProfile = await this.profile(t, options);
    return {
      alice,
      bob,
      caller: await callerProfile.open({ me: alice, peer: bob, prepare: caller.prepare }),
      callee: await calleeProfile.open({ me: bob, prepare: callee.prepare }),
      callerProfile,
      calleeProfile,
    };
  }

  /** Two users in a call, with media flowing both ways. */
  async call(t, { type = 'video', ...parties } = {}) {
    const people = await this.pair(t, parties);
    await people.caller.dial(type);
    await people.callee.accept();
    await people.caller.inCall();
    await people.callee.inCall();
    return people;
  }

  async stop() {
    await this.browser.close();
    await this.server.stop();
  }
}

/** One tab with the page. */
export class Tab {
  /** Errors reported by the browser: exceptions, failed requests, violations of the content security policy. */
  complaints = [];

  constructor(page) {
    this.page = page;
    page.on('pageerror', (error) => this.complaints.push(error.message));
    page.on('console', (message) => {
      // While the server is unreachable on purpose, failed connections are reported too.
      if (
        message.type() === 'error' &&
        !/ERR_INTERNET_DISCONNECTED|ERR_CONNECTION_REFUSED|WebSocket connection to/.test(message.text())
      ) {
        this.complaints.push(message.text());
      }
    });
  }

  // ---- visible state ------------------------------------------------------------------------------------------

  /** Waits until this text is visible. */
  sees(selector, text) {
    return this.page
      .locator(selector, text === undefined ? {} : { hasText: text })
      .first()
      .waitFor();
  }

  /** Waits until this text is no longer visible. */
  missing(selector) {
    return this.page.locator(selector).first().waitFor({ state: 'hidden' });
  }

  /** Waits for the state of the page: idle, or the phase of the call. */
  state(name) {
    return this.page.locator(`body[data-call="${name}"]`).waitFor({ state: 'attached' });
  }

  connected() {
    return this.page.locator('#connection[data-state="connected"]').waitFor({ state: 'attached' });
  }

  text(selector) {
    return this.page.locator(selector).innerText();
  }

  async inCall() {
    await this.state('active');
    await this.page.locator('#stage[data-media="connected"]').waitFor();
    await eventually(async () => (await this.text('#trouble')) === '', 'nothing in the way of the call', PATIENCE_MS);
  }

  /** Waits for the card of the ended call. */
  async ended(words) {
    await this.state('ended');
    await this.sees('#ended-title');
    assert.equal(await this.text('#ended-title'), words);
  }

  // ---- actions ------------------------------------------------------------------------------------------

  click(selector) {
    return this.page.locator(selector).click();
  }

  async dial(type) {
    await this.click(`#call-form button[value="${type}"]`);
    await this.sees('#outgoing[open]');
  }

  async accept() {
    await this.sees('#incoming[open]');
    await this.click('#accept');
  }

  // ---- media of the other side -------------------------------------------------------------------

  /** Bytes received so far, by kind; of the RTCPeerConnection in use now. */
  received() {
    return this.page.evaluate(async () => {
      const bytes = { audio: 0, video: 0, framesDecoded: 0 };
      try {
        for (const entry of (await globalThis.switchboard.phone.call.getStats()).values()) {
          if (entry.type !== 'inbound-rtp') continue;
          bytes[entry.kind] += entry.bytesReceived;
          bytes.framesDecoded += entry.framesDecoded ?? 0;
        }
      } catch {
        // between two connections there is none
      }
      return bytes;
    });
  }

  /** Waits until sound, and a picture if `video`, keep arriving. */
  async receives({ video }) {
    const first = await eventually(
      async () => {
        const now = await this.received();
        return now.audio > 0 && (!video || (now.video > 0 && now.framesDecoded > 0)) && now;
      },
      `${video ? 'sound and picture' : 'sound'} from the other side`,
      PATIENCE_MS,
    );
    await eventually(
      async () => {
        const now = await this.received();
        return (
          now.audio > first.audio && (!video || (now.video > first.video && now.framesDecoded > first.framesDecoded))
        );
      },
      'more from the other side',
      PATIENCE_MS,
    );
  }

  /** Waits until the other side's picture is on the page and moves. */
  async seesPicture() {
    await this.sees('#remote-video');
    const time = () =>
      this.page.locator('#remote-video').evaluate((video) => (video.videoWidth > 0 ? video.currentTime : 0));
    const before = await eventually(time, 'a picture', PATIENCE_MS);
    await eventually(async () => (await time()) > before, 'a moving picture', PATIENCE_MS);
  }

  hears() {
    return eventually(
      () => this.page.locator('#remote-audio').evaluate((audio) => !audio.paused && audio.currentTime > 0),
      'sound being played',
      PATIENCE_MS,
    );
  }

  /** Takes a screenshot, if screenshots are requested. */
  async picture(name) {
    if (!process.env.SCREENSHOTS) return;
    await mkdir(process.env.SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`), animations: 'disabled' });
  }
}

/** Waits until both get sound, and a picture if `video`, from each other. */
export async function talking(one, other, { video = true } = {}) {
  await Promise.all([one.receives({ video }), other.receives({ video })]);
}

/** Runs in the page: delays its initiates until `release()` is called there. */
export function holdInitiates() {
  const { signaling } = globalThis.switchboard;
  const initiate = signaling.initiate.bind(signaling);
  const released = new Promise((release) => (globalThis.release = release));
  signaling.initiate = async (payload) => {
    await released;
    return initiate(payload);
  };
}

// Runs in the page. A small picture keeps the tests quick on a small machine; the page itself asks for more.
function modestMedia() {
  const devices = navigator.mediaDevices;
  if (!devices) return;
  const open = devices.getUserMedia.bind(devices);
  globalThis.openedTracks = [];
  devices.getUserMedia = async ({ audio, video }) => {
    const stream = await open({ audio, video: video && { width: 320, height: 240, frameRate: 10 } });
    globalThis.openedTracks.push(...stream.getTracks());
    return stream;
  };
}

/** Checks that microphone and camera were opened and released. */
export async function assertDevicesClosed(tab) {
  const states = await tab.page.evaluate(() => globalThis.openedTracks.map(({ readyState }) => readyState));
  assert.ok(states.length > 0 && states.every((state) => state === 'ended'), `the devices are let go: ${states}`);
}
