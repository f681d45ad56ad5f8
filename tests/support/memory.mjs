// How much memory a server takes.

import { readFile } from 'node:fs/promises';

/** What the process has resident. */
export async function residentBytes({ pid }) {
  const [, kib] = /VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${pid}/status`, 'utf8'));
  return Number(kib) * 1024;
}
