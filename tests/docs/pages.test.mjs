// Checks each page: links, names, blocks and language.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { describe, test } from 'node:test';
import { parse } from 'yaml';
import { filesUnder, knownSettings, path, read } from '../support/deployment.mjs';
import { BINARY } from '../support/server.mjs';
import { commentsUnder } from './comments.mjs';
import { anchorsOf, blocksOf, linksOf, page, PAGES, proseOf } from './pages.mjs';

/** The target of a link in a page: a path from the root, and an anchor. */
function resolve(from, link) {
  const [target, anchor] = link.split('#');
  return { to: target ? normalize(join(dirname(from), target)) : from, anchor };
}

describe('links', () => {
  for (const one of PAGES) {
    test(one.name, () => {
      for (const link of linksOf(one)) {
        const { to, anchor } = resolve(one.name, link);
        assert.ok(existsSync(path(to)), `${link}: there is no ${to}`);
        if (anchor && page(to)) assert.ok(anchorsOf(page(to)).has(anchor), `${link}: there is no such heading in ${to}`);
      }
    });
  }

  test('every page of docs/ can be reached from its index', () => {
    const index = page('docs/README.md');
    const linked = new Set(linksOf(index).map((link) => resolve(index.name, link).to));
    const pages = PAGES.map(({ name }) => name).filter((name) => name.startsWith('docs/') && name !== index.name);
    assert.ok(pages.length > 15);
    assert.deepEqual(pages.filter((name) => !linked.has(name)), []);
  });
});

describe('names', () => {
  const code = (one) => [...proseOf(one).matchAll(/`([^`\n]+)`/g)].map(([, words]) => words).concat(blocksOf(one).map(({ body }) => body));
  const found = (pattern) => PAGES.flatMap((one) => code(one).flatMap((text) => [...text.matchAll(pattern)].map(([, name]) => `${one.name}: ${name}`)));
  const unknown = (pattern, isKnown) => found(pattern).filter((line) => !isKnown(line.split(': ')[1]));

  test('files of the repository', () => {
    const folders = /(?:^|[ =("/])((?:src|tests|web|deploy|k8s|benches|scripts|fuzz|docs|migrations)\/[\w./-]+)/g;
    // Written by hand or by a command, so git has neither.
    const isMade = (name) => ['deploy/.env', 'fuzz/found/', 'k8s/overlays/ours'].some((made) => name.startsWith(made));
    assert.deepEqual(unknown(folders, (name) => isMade(name) || existsSync(path(name)) || existsSync(path('tests', name))), []);
    assert.ok(found(folders).length > 50);
  });

  test('settings', () => {
    const settings = knownSettings();
    const others = new Set(['SWITCHBOARD_BIN', 'SWITCHBOARD_CONFIG']);
    assert.deepEqual(unknown(/(SWITCHBOARD_[A-Z_]+)/g, (name) => settings.has(name) || others.has(name)), []);
  });

  test('targets of make', () => {
    const targets = new Set([...read('Makefile').matchAll(/^([a-z-]+):/gm)].map(([, target]) => target));
    assert.deepEqual(unknown(/(?:^|[^\w-])make ([a-z]+(?:-[a-z]+)*)/g, (target) => targets.has(target)), []);
  });

  test('commands and flags of the binary', () => {
    const help = (...command) => execFileSync(BINARY, [...command, '--help'], { encoding: 'utf8' });
    const flagsOf = (text) => new Set([...text.matchAll(/--([a-z-]+)/g)].map(([, flag]) => flag));
    const serve = flagsOf(help());
    for (const one of PAGES) {
      for (const { language, body } of blocksOf(one)) {
        if (!['sh', 'text'].includes(language)) continue;
        for (const [, command = '', rest] of body.replaceAll('\\\n', ' ').replaceAll(/^(?:kubectl|helm) .*$/gm, '').matchAll(/(?:^|[\s(])(?:[\w$.\/]+\/)?switchboard(?: (config|doctor|health|migrate|token|serve|bench [a-z]+))?((?: [^\n|;&)>]*)?)$/gm)) {
          const flags = command ? flagsOf(help(...command.split(' '))) : serve;
          for (const [, flag] of rest.matchAll(/ --([a-z-]+)/g)) assert.ok(flags.has(flag), `${one.name}: switchboard ${command} --${flag}`);
        }
      }
    }
  });

  test('endpoints', () => {
    const served = [...filesUnder('src/http').map((file) => read(file)).join('').matchAll(/path = "([^"]+)"/g)].map(([, name]) => name);
    const plain = (name) => name.replaceAll(/\{[^}]+\}|\b(?:USER|CALL)?ID\b/g, '*').replace(/\/$/, '');
    const known = new Set(served.map(plain));
    assert.ok(known.size > 5);
    assert.deepEqual(unknown(/(?:GET|POST|:3000|^) ?(\/v1\/[\w{}/-]+)/g, (name) => known.has(plain(name)) || ['/v1/admin', '/v1/admin/', '/v1/traces'].includes(name)), []);
  });

  test('events and errors of the protocol', () => {
    const code = filesUnder('src/protocol').map((file) => read(file)).join('');
    const names = new Set([...code.matchAll(/"((?:call|presence|auth|ice|server):[a-z-]+|user-connected|(?!SCREAMING)[A-Z]+_[A-Z_]+|GLARE|FORBIDDEN)"/g)].map(([, name]) => name));
    assert.ok(names.size > 25);
    assert.deepEqual([...names].filter((name) => !page('docs/reference/protocol.md').text.includes(`\`${name}\``)), []);
  });
});

describe('blocks', () => {
  const parsers = {
    sh: (body) => shell(body),
    js: (body) => {
      const { status, stderr } = spawnSync(process.execPath, ['--check', '--input-type=module', '-'], { input: body, encoding: 'utf8' });
      assert.equal(status, 0, stderr);
    },
    json: (body) => JSON.parse(body),
    yaml: (body) => parse(body),
    mermaid: (body) => diagram(body),
  };

  function shell(body) {
    const { status, stderr } = spawnSync('bash', ['-n'], { input: body, encoding: 'utf8' });
    assert.equal(status, 0, stderr);
  }

  /** As much of Mermaid as the pages use. */
  function diagram(body) {
    const [kind, ...lines] = body.trim().split('\n').map((line) => line.trim());
    assert.ok(['sequenceDiagram', 'flowchart LR'].includes(kind), kind);
    if (kind !== 'sequenceDiagram') return;
    const parties = lines.map((line) => /^participant (\w+)/.exec(line)?.[1]).filter(Boolean);
    for (const line of lines) {
      if (/^participant \w+( as .+)?$/.test(line)) continue;
      const [, from, to] = /^(\w+)(?:-->>|->>|--x|-x)(\w+): [^;#]+$/.exec(line) ?? [];
      const [, over] = /^Note over ([\w,]+): [^;#]+$/.exec(line) ?? [];
      const named = over ? over.split(',') : [from, to];
      for (const name of named) assert.ok(parties.includes(name), `${line}: ${name}`);
    }
  }

  for (const one of PAGES) {
    test(one.name, () => {
      for (const { language, body } of blocksOf(one)) parsers[language]?.(body);
      const known = ['', 'text', 'http', ...Object.keys(parsers)];
      assert.deepEqual(blocksOf(one).filter(({ language }) => !known.includes(language)), []);
    });
  }
});

describe('language', () => {
  const OPENING = /^[#>*\-\s\d.]*(?:What|Who|Whoever|Of these)\b/;
  // A sentence ends with a full stop, a line of a list, a cell or a paragraph.
  const sentencesOf = (text) => text.replaceAll(/\n(?=\s*(?:[-*#|]|\d+\.)|\s*\n)/g, ' ¶').split(/(?<=[.!?])\s+|¶|\|/).map((words) => words.trim()).filter((words) => /\w/.test(words));

  /** Counts the openings of all texts: `{all, bad}`. No text may have more than one, or 2 % of its sentences. */
  function openingsOf(texts) {
    const counts = { all: 0, bad: [] };
    for (const { name, text } of texts) {
      const sentences = sentencesOf(text);
      const openings = sentences.filter((words) => OPENING.test(words));
      assert.ok(openings.length <= Math.max(1, sentences.length * 0.02), `${name}: ${openings.join('\n')}`);
      counts.all += sentences.length;
      counts.bad.push(...openings);
    }
    return counts;
  }

  test('few sentences begin with What, Who, Whoever or Of these', () => {
    const { all, bad } = openingsOf(PAGES.map((one) => ({ name: one.name, text: proseOf(one) })));
    assert.ok(all > 2_000 && bad.length < all * 0.02, `${bad.length} of ${all}`);
  });

  test('nor do those of comments', () => {
    const files = commentsUnder('src', 'tests', 'benches');
    const { all, bad } = openingsOf(files.map(({ name, comments }) => ({ name, text: comments.join('\n\n') })));
    assert.ok(all > 4_000 && bad.length < all * 0.005, `${bad.length} of ${all}: ${bad.join('\n')}`);
  });
});
