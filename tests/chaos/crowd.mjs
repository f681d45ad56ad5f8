// Many lean clients in a process of their own, which only stay connected.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { eventually } from '../support/check.mjs';

const PROGRAM = fileURLToPath(new URL('crowd-process.mjs', import.meta.url));
const WITHIN_MS = 60_000;

export async function startCrowd(url, count) {
  const args = ['--pdeathsig', 'KILL', '--', process.execPath, PROGRAM, url, `${count}`];
  const child = spawn('setpriv', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const gone = once(child, 'close');
  let whole = 0;
  child.stdout.setEncoding('utf8').on('data', (text) => (whole += text.split('\n').length - 1));
  const becomesWhole = (turn) => eventually(() => whole >= turn, `all ${count} are connected`, WITHIN_MS);
  await becomesWhole(1);
  return {
    /** Resolves when all have lost their connection and reconnected; must be called before they lose it. */
    back: () => becomesWhole(whole + 1),
    async stop() {
      child.kill('SIGKILL');
      await gone;
    },
  };
}
