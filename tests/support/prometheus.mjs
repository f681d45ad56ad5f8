// A real Prometheus with the shipped settings and shorter intervals.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { eventually } from './check.mjs';
import { freePort } from './cluster.mjs';
import { path, read } from './deployment.mjs';
import { privateFolder } from './server.mjs';

/** Runs a program until the test ends, and returns a function for its output so far. */
export function running(t, program, args, options = {}) {
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  const run = { child, output: '' };
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding('utf8').on('data', (text) => (run.output += text));
  const gone = once(child, 'close');
  t.after(async () => {
    child.kill('SIGKILL');
    await gone;
  });
  return run;
}

export async function folderFor(t) {
  const folder = await privateFolder();
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/**
 * Starts a Prometheus that scrapes these targets every second: `{targets, labels}`. Alerts go to `alertmanager`, a host
 * and port.
 */
export async function startPrometheus(t, targets, { alertmanager } = {}) {
  const folder = await folderFor(t);
  const settings = join(folder, 'settings');
  await cp(path('deploy/prometheus'), settings, { recursive: true });
  const file = join(settings, 'prometheus.yml');
  // As shipped, with shorter intervals.
  const often = read('deploy/prometheus/prometheus.yml').replaceAll(/((?:scrape|evaluation)_\w+): \d+s/g, '$1: 1s');
  await writeFile(file, often);
  await writeFile(join(settings, 'targets/switchboard.yml'), JSON.stringify(targets));
  if (alertmanager) await writeFile(join(settings, 'targets/alertmanagers.yml'), JSON.stringify([{ targets: [alertmanager] }]));
  const url = `http://127.0.0.1:${await freePort()}`;
  const args = [`--config.file=${file}`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=${new URL(url).host}`];
  const run = running(t, 'prometheus', args);
  const prometheus = new Prometheus(url, run);
  await eventually(async () => (await fetch(`${url}/-/ready`).catch(() => ({}))).ok, `Prometheus is ready\n${run.output}`, 30_000);
  return prometheus;
}

class Prometheus {
  constructor(url, run) {
    this.url = url;
    this.run = run;
  }

  async api(path, parameters = {}) {
    const answer = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    return answer.json();
  }

  /** The present series of an expression: `{metric, value}`. Fails if Prometheus rejects it. */
  async query(query) {
    const { status, error, warnings, data } = await this.api('query', { query });
    if (status !== 'success' || warnings) throw new Error(`${query}: ${error ?? warnings}`);
    return data.result.map(({ metric, value: [, value] }) => ({ metric, value: Number(value) }));
  }
}
