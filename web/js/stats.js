// Reduces getStats of a running call to the figures of `call:stats`.

/** Reports on one Peer. Loss is measured since the previous report. */
export class StatsReporter {
  #received = 0;
  #lost = 0;

  async report(peer) {
    const stats = [...(await peer.getStats()).values()];
    const ofType = (type) => stats.filter((entry) => entry.type === type);
    const byId = (id) => stats.find((entry) => entry.id === id);

    const transport = ofType('transport')[0];
    const pair = byId(transport?.selectedCandidatePairId);
    const inbound = ofType('inbound-rtp');
    const received = sum(inbound.map((entry) => entry.packetsReceived));
    const lost = sum(inbound.map((entry) => entry.packetsLost));
    const newReceived = received - this.#received;
    const newLost = Math.max(0, lost - this.#lost);
    this.#received = received;
    this.#lost = lost;

    const report = {
      roundTripMs: milliseconds(pair?.currentRoundTripTime),
      lossPercent: newReceived + newLost > 0 ? round((100 * newLost) / (newReceived + newLost)) : undefined,
      jitterMs: milliseconds(inbound.find((entry) => entry.kind === 'audio')?.jitter),
      candidateType: byId(pair?.localCandidateId)?.candidateType,
      iceState: transport?.iceState,
    };
    return Object.fromEntries(Object.entries(report).filter(([, value]) => value !== undefined));
  }
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + (number ?? 0), 0);
}

function milliseconds(seconds) {
  return seconds === undefined ? undefined : round(seconds * 1000);
}

function round(number) {
  return Math.round(number * 100) / 100;
}
