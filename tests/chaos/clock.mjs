// A movable time of day for a running process, by libfaketime. Its monotonic clock is not affected.

import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { privateFolder } from '../support/server.mjs';

const LIBRARY = ['x86_64-linux-gnu', 'aarch64-linux-gnu', 'arm-linux-gnueabihf']
  .map((machine) => `/usr/lib/${machine}/faketime/libfaketimeMT.so.1`)
  .find((path) => existsSync(path));

/** Returns nothing if libfaketime is not installed. */
export async function movableClock() {
  if (!LIBRARY) return undefined;
  const dir = await privateFolder();
  const file = join(dir, 'time');
  const clock = {
    env: {
      LD_PRELOAD: LIBRARY,
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      FAKETIME_DONT_RESET: '1',
      FAKETIME_NO_CACHE: '1',
    },
    /** Sets the time of day to this many seconds from the true time. */
    move: (seconds) => writeFile(file, `${seconds < 0 ? '' : '+'}${seconds}s\n`),
    stop: () => rm(dir, { recursive: true, force: true }),
  };
  await clock.move(0);
  return clock;
}
