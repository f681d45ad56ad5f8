// The table of docs/operations/reliability.md.

import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const PAGE = fileURLToPath(new URL('../../docs/operations/reliability.md', import.meta.url));

export const HEAD = [
  '| fault | times | calls ended wrongly | history rows missing or wrong | out of order, doubled / to the wrong person | acknowledged, and lost | new calls work again: median / slowest, s | memory of the nodes before / after, MiB |',
  '|---|---|---|---|---|---|---|---|',
];

const seconds = (ms) => (ms === undefined || ms === Infinity ? 'never' : (ms / 1_000).toFixed(1));
const mib = (bytes) => Math.round(bytes / 1024 / 1024);

export function row(fault, figures, counts) {
  const times = [...figures.workAgainMs].sort((one, other) => one - other);
  const back = figures.crowdBackMs ? `, all back within ${seconds(figures.crowdBackMs)} s` : '';
  return cells([
    fault.name + back,
    figures.rounds,
    counts.ended,
    counts.history,
    `${counts.disorder} / ${counts.stranger}`,
    counts.cut ? `${counts.lost}, and ${counts.cut} with their receiver's connection` : counts.lost,
    `${seconds(times[times.length >> 1])} / ${seconds(times.at(-1))}`,
    `${mib(figures.before)} / ${mib(figures.after)}`,
  ]);
}

export const notRun = (fault, why) => cells([fault.name, `0: it needs ${why}`, '', '', '', '', '', '']);

const cells = (texts) => `| ${texts.join(' | ')} |`;

/** Writes these lines between the two markers of this name in a page. */
export async function writeBetween(mark, lines) {
  const page = await readFile(PAGE, 'utf8');
  const [begin, end] = [`<!-- ${mark} -->\n`, `<!-- /${mark} -->`];
  const from = page.indexOf(begin) + begin.length;
  const to = page.indexOf(end);
  if (from < begin.length || to < from) throw new Error(`docs/operations/reliability.md has no place for ${mark}`);
  await writeFile(PAGE, `${page.slice(0, from)}${lines.join('\n')}\n${page.slice(to)}`);
}
