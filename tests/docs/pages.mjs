// The pages of the documentation, parsed: blocks, prose, anchors, links.

import { execFileSync } from 'node:child_process';
import { ROOT, read } from '../support/deployment.mjs';

/** Each Markdown page of the repository. */
export const PAGES = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'], { cwd: ROOT, encoding: 'utf8' })
  .split('\n')
  .filter((page) => page && !page.startsWith('.github/'))
  .map((name) => ({ name, text: read(name) }));

export const page = (name) => PAGES.find((one) => one.name === name);

const FENCE = /^( *)```(\w*)\n(.*?)^\1```$/gms;

/** The fenced blocks of a page, in order. */
export function blocksOf({ text }) {
  return [...text.matchAll(FENCE)].map(([, indent, language, body]) => ({
    language,
    body: body.replaceAll(new RegExp(`^${indent}`, 'gm'), ''),
  }));
}

/** A page without its fenced blocks. */
export const proseOf = ({ text }) => text.replaceAll(FENCE, '');

/** The anchors of the headings of a page, as GitHub makes them. */
export function anchorsOf(one) {
  const titles = [...proseOf(one).matchAll(/^#+ (.+)$/gm)].map(([, title]) => title.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1'));
  return new Set(titles.map((title) => title.toLowerCase().replaceAll(/[^\p{L}\p{N}_ -]/gu, '').replaceAll(' ', '-')));
}

/** The links of a page that do not lead out of the repository. */
export function linksOf(one) {
  const targets = [...proseOf(one).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target);
  return targets.filter((target) => !/^[a-z]+:/.test(target));
}
