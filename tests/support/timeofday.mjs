// A movable time of day for a running Redis. Its monotonic clock is not affected.

import { execFile } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { privateFolder } from './server.mjs';

const SOURCE = fileURLToPath(new URL('time_of_day.c', import.meta.url));

/** `env` is for the process; `move` sets its time of day to this many seconds from the true time. */
export async function movableTimeOfDay() {
  const dir = await privateFolder();
  const [library, file] = [join(dir, 'time_of_day.so'), join(dir, 'seconds')];
  await promisify(execFile)('cc', ['-shared', '-fPIC', '-o', library, SOURCE]);
  const move = (seconds) => writeFile(file, `${seconds}`);
  await move(0);
  return {
    env: { LD_PRELOAD: library, TIME_OF_DAY_FILE: file },
    move,
    stop: () => rm(dir, { recursive: true, force: true }),
  };
}
