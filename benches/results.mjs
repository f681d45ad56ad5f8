// Where things are, and what is made of several figures.

import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A path as one names it from the root of the repository. */
export const fromRoot = (path) => resolve(fileURLToPath(new URL('..', import.meta.url)), path);

export const target = fromRoot(process.env.CARGO_TARGET_DIR ?? 'target');

/** What a run of run.mjs found. */
export const results = join(target, 'bench.json');

export const median = (values) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
