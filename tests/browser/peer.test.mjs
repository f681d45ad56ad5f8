// Two Peers in one page, without a server between them.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { serverAndBrowser } from './support.mjs';

let here;
before(async () => (here = await serverAndBrowser()));
after(() => here?.stop());

async function page(t) {
  const tab = await (await here.profile(t)).open();
  // `wire` creates two connected Peers: `pass` may change, delay or drop their messages.
  await tab.page.evaluate(async () => {
    const { Peer } = await import('/js/peer.js');
    globalThis.wire = async ({ pass = (from, kind, deliver) => deliver(), polite = [false, true] } = {}) => {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const peers = polite.map(
        (isPolite) =>
          new Peer({ polite: isPolite, iceServers: [], tracks: { audio: stream.getAudioTracks()[0], video: null } }),
      );
      peers.forEach((peer, index) => {
        const other = peers[1 - index];
        let turn = Promise.resolve();
        const inTurn = (task) => (turn = turn.then(task));
        peer.addEventListener('description', ({ detail }) =>
          pass(index, detail.type, () => inTurn(() => other.receive(detail))),
        );
        peer.addEventListener('candidate', ({ detail }) =>
          pass(index, 'candidate', () => inTurn(() => other.addCandidate(detail))),
        );
      });
      return peers;
    };
    globalThis.connected = (peers) =>
      Promise.all(
        peers.map(
          (peer) =>
            new Promise((resolve, reject) => {
              const check = () => peer.state === 'connected' && resolve();
              peer.addEventListener('state', check);
              check();
              setTimeout(() => reject(new Error(`still ${peer.state}`)), 15_000);
            }),
        ),
      );
  });
  return tab.page;
}

test('candidates that come before the description wait for it', async (t) => {
  const result = await (
    await page(t)
  ).evaluate(async () => {
    // The answerer's candidates are lost, so that only the offerer's, which arrive first, can connect.
    const offers = [];
    let candidates = 0;
    const peers = await globalThis.wire({
      pass: (from, kind, deliver) => {
        if (from === 1 && kind === 'candidate') return;
        if (kind === 'offer') {
          offers.push(deliver);
          return;
        }
        deliver();
        if (kind === 'candidate' && ++candidates === 1) setTimeout(() => offers.forEach((late) => late()), 200);
      },
    });
    peers[0].start(['audio']);
    await globalThis.connected(peers);
    return candidates;
  });
  assert.ok(result > 0);
});

test('when two offers cross, the polite side gives way and both connect', async (t) => {
  for (const polite of [
    [false, true],
    [true, false],
  ]) {
    const offers = await (
      await page(t)
    ).evaluate(async (sides) => {
      const held = [];
      let offered = 0;
      const peers = await globalThis.wire({
        polite: sides,
        pass: (from, kind, deliver) => {
          if (kind === 'offer') offered += 1;
          // Delivers nothing before both have created their offers.
          if (offered < 2) held.push(deliver);
          else {
            for (const late of held.splice(0)) late();
            deliver();
          }
        },
      });
      for (const peer of peers) peer.start(['audio']);
      await globalThis.connected(peers);
      const heard = peers.map((peer) => peer.remoteTrack('audio') !== null);
      return { offered, heard };
    }, polite);
    assert.ok(offers.offered >= 2);
    assert.deepEqual(offers.heard, [true, true]);
  }
});

test('the offer of a new connection is not taken by an old one, but by a new one', async (t) => {
  const result = await (
    await page(t)
  ).evaluate(async () => {
    const { Peer } = await import('/js/peer.js');
    const peers = await globalThis.wire();
    peers[0].start(['audio']);
    await globalThis.connected(peers);
    const reloaded = new Peer({ polite: false, iceServers: [], tracks: { audio: null, video: null } });
    const offer = new Promise((resolve) =>
      reloaded.addEventListener('description', ({ detail }) => resolve(detail), { once: true }),
    );
    reloaded.start(['audio']);
    const fresh = new Peer({ polite: true, iceServers: [], tracks: { audio: null, video: null } });
    return [await peers[1].receive(await offer), await fresh.receive(await offer)];
  });
  assert.deepEqual(result, [false, true]);
});

test('an answer that nobody waits for is ignored', async (t) => {
  const state = await (
    await page(t)
  ).evaluate(async () => {
    const answers = [];
    const peers = await globalThis.wire({
      pass: (from, kind, deliver) => {
        if (kind === 'answer') answers.push(deliver);
        deliver();
      },
    });
    peers[0].start(['audio']);
    await globalThis.connected(peers);
    await answers[0](); // again
    return peers[0].state;
  });
  assert.equal(state, 'connected');
});
