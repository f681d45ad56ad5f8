// The memory of a server.

import { readFile } from 'node:fs/promises';

/** Resident memory of the process. */
export async function residentBytes({ pid }) {
  const [, kib] = /VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${pid}/status`, 'utf8'));
  return Number(kib) * 1024;
}
