// Metrics of nodes, parsed as Prometheus parses them.

import assert from 'node:assert/strict';
import { DEADLINE_MS, eventually } from './check.mjs';

/** The metrics of a server, or the sums over all nodes of a cluster. */
export async function scrape(server) {
  const texts = (server.nodes ?? [server]).map(async ({ adminUrl }) => {
    const response = await fetch(`${adminUrl}/metrics`, { signal: AbortSignal.timeout(DEADLINE_MS) });
    assert.equal(response.status, 200);
    return response.text();
  });
  return new Scrape((await Promise.all(texts)).flatMap(samplesIn));
}

function samplesIn(text) {
  const lines = text.split('\n').filter((line) => line && !line.startsWith('#'));
  return lines.map((line) => {
    const [, name, inside = '', value] = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? assert.fail(`not a sample: ${line}`);
    const labels = Object.fromEntries([...inside.matchAll(/(\w+)="([^"]*)"/g)].map(([, key, text]) => [key, text]));
    return { name, labels, value: Number(value) };
  });
}

class Scrape {
  constructor(samples) {
    this.samples = samples;
  }

  #of(name, labels = {}) {
    return this.samples.filter(
      (sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value),
    );
  }

  has(name) {
    return this.#of(name).length > 0;
  }

  /** The sum of all samples with these labels. */
  value(name, labels) {
    assert.ok(this.has(name), `there is no ${name}`);
    return this.#of(name, labels).reduce((sum, { value }) => sum + value, 0);
  }

  /** The samples that differ from `before`, by the values of their labels. */
  byLabels(name, before) {
    const sums = {};
    for (const [sign, scrape] of [[1, this], [-1, before]]) {
      for (const { labels, value } of scrape?.#of(name) ?? []) {
        const key = Object.keys(labels).sort().map((label) => labels[label]).join(' ');
        sums[key] = (sums[key] ?? 0) + sign * value;
      }
    }
    return Object.fromEntries(Object.entries(sums).filter(([, value]) => value !== 0));
  }
}

/** Waits until these metrics have grown by exactly these amounts since `before`: by name, then by labels. */
export async function counted(server, before, expected) {
  let last;
  const fits = async () => {
    const now = await scrape(server);
    last = Object.fromEntries(Object.keys(expected).map((name) => [name, now.byLabels(name, before)]));
    try {
      assert.deepEqual(last, expected);
      return now;
    } catch {
      return false;
    }
  };
  try {
    return await eventually(fits, 'the metrics');
  } catch {
    assert.deepEqual(last, expected);
    throw new Error('the metrics became right too late');
  }
}

/** The violated invariants of this node; empty if the node cannot be asked. */
export async function violationsOf(adminUrl) {
  const asked = fetch(`${adminUrl}/metrics`, { signal: AbortSignal.timeout(2_000) });
  const text = await asked.then((response) => response.text()).catch(() => '');
  return text.match(/^switchboard_invariant_violations_total\{.*\} [1-9].*$/gm) ?? [];
}
