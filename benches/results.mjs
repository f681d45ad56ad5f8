// Paths, and statistics over rounds.

import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A path from the root of the repository. */
export const fromRoot = (path) => resolve(fileURLToPath(new URL('..', import.meta.url)), path);

export const target = fromRoot(process.env.CARGO_TARGET_DIR ?? 'target');

/** The results of a run of run.mjs. */
export const results = join(target, 'bench.json');

export const median = (values) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
