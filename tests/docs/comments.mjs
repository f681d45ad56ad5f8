// The comments of the source files, parsed into sentences.

import { execFileSync } from 'node:child_process';
import { ROOT, read } from '../support/deployment.mjs';

const COMMENT = { rs: /^\s*\/\/[/!]? ?(.*)$/, mjs: /^\s*(?:\/\/|\/\*\*?|\*\/?) ?(.*?)(?:\*\/)?$/ };

/** Each file of Rust or JavaScript under these folders: its name and its comments, a block of lines each. */
export function commentsUnder(...folders) {
  const names = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', ...folders], { cwd: ROOT, encoding: 'utf8' });
  return names.split('\n').flatMap((name) => {
    const pattern = COMMENT[name.split('.').at(-1)];
    return pattern ? [{ name, comments: commentsOf(read(name), pattern) }] : [];
  });
}

function commentsOf(source, pattern) {
  const blocks = [[]];
  for (const line of source.split('\n')) {
    const text = pattern.exec(line)?.[1];
    const trailing = /\S\s+\/\/ ([A-Z].*)$/.exec(line)?.[1];
    if (text !== undefined) blocks.at(-1).push(text);
    else blocks.push(...(trailing ? [[trailing]] : []), []);
  }
  return blocks.map((lines) => lines.join('\n')).filter((text) => /\w/.test(text));
}
