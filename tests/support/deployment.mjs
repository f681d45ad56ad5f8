// deploy/ and k8s/, parsed as their tools parse them.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { parse, parseAllDocuments } from 'yaml';
import { BINARY } from './server.mjs';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));
export const LAYERS = ['base', 'overlays/dev', 'overlays/production'];

const run = promisify(execFile);

export const path = (...parts) => join(ROOT, ...parts);
export const read = (...parts) => readFileSync(path(...parts), 'utf8');
export const yaml = (...parts) => parse(read(...parts), { merge: true });

/** The block of YAML in a document that contains this text. */
export function yamlIn(document, word) {
  const blocks = [...document.matchAll(/^```yaml\n(.*?)^```/gms)].map(([, block]) => block);
  return parse(blocks.find((block) => block.includes(word)) ?? assert.fail(`no block with ${word}`));
}

/** Runs a program and returns its output; fails with that output if the program fails. */
export async function succeed(program, args, options = {}) {
  try {
    const { stdout, stderr } = await run(program, args, { cwd: ROOT, ...options });
    return stdout + stderr;
  } catch (error) {
    return assert.fail(`${program} ${args.join(' ')}: ${error.message}\n${error.stdout}`);
  }
}

/** A program of the Python packages that test-setup installs. */
export const fromVenv = (name) => path('tests/.venv/bin', name);

/** The output of `kubectl kustomize`, as text. */
export const render = (layer) => kustomize(path('k8s', layer));

const kustomize = (folder) => execFileSync(fromVenv('kubectl'), ['kustomize', folder], { encoding: 'utf8' });

/** The production overlay with other components, as text: `change` edits their names. `more` replaces other fields. */
export function renderWith(change, more = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'switchboard-test-'));
  try {
    const overlay = yaml('k8s/overlays/production/kustomization.yaml');
    const names = change(overlay.components.map((component) => basename(component)));
    const here = (...parts) => relative(realpathSync(folder), path('k8s', ...parts));
    overlay.resources = [here('base')];
    overlay.components = names.map((name) => here('components', name));
    // A patch whose target is not there is an error.
    if (!names.includes('ingress-haproxy')) overlay.patches = overlay.patches.filter(({ target }) => target.kind !== 'Ingress');
    writeFileSync(join(folder, 'kustomization.yaml'), JSON.stringify({ ...overlay, ...more }));
    return kustomize(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** A text of objects, parsed. */
export function objectsIn(text) {
  const all = parseAllDocuments(text).map((document) => document.toJS()).filter(Boolean);
  return { all, of: (kind) => all.filter((one) => one.kind === kind), one: (kind, name) => one(all, kind, name) };
}

/** The output of `kubectl kustomize`, as objects. */
export const rendered = (layer) => objectsIn(render(layer));

function one(all, kind, name) {
  const found = all.filter((object) => object.kind === kind && object.metadata.name.replace(/-[a-z0-9]{10}$/, '') === name);
  assert.equal(found.length, 1, `${found.length} of ${kind} ${name}`);
  return found[0];
}

/** Each pod of a Deployment or a Job, with the name of its owner. */
export const podsOf = ({ all }) =>
  all.filter(({ spec }) => spec?.template?.spec).map(({ metadata, spec }) => ({ name: metadata.name, labels: spec.template.metadata.labels, pod: spec.template.spec }));

/** A container's environment, with the values of its ConfigMaps and Secrets. Fails on a dangling reference. */
export function environmentOf(container, objects, secrets = {}) {
  const environment = {};
  for (const { configMapRef } of container.envFrom ?? []) {
    const { data } = objects.all.find(({ kind, metadata }) => kind === 'ConfigMap' && metadata.name === configMapRef?.name)
      ?? assert.fail(`there is no ConfigMap ${configMapRef?.name}`);
    Object.assign(environment, data);
  }
  for (const { name, value, valueFrom } of container.env ?? []) {
    environment[name] = value ?? secretValue(valueFrom.secretKeyRef, objects, secrets);
  }
  return environment;
}

function secretValue({ name, key }, { all }, secrets) {
  const secret = all.find(({ kind, metadata }) => kind === 'Secret' && metadata.name === name);
  const encoded = secret?.data?.[key];
  if (encoded !== undefined) return Buffer.from(encoded, 'base64').toString();
  return secrets[name]?.[key] ?? assert.fail(`there is no key ${key} in a Secret ${name}`);
}

/** compose.yaml with the variables of `.env.example`, and the services' own environment. */
export function compose() {
  const variables = variablesIn(read('deploy/.env.example'));
  const secrets = variablesIn(madeSecrets());
  const text = read('deploy/compose.yaml');
  const used = [...text.matchAll(/\$\{([A-Z_]+):([-?])([^}]*)\}/g)].map(([, name, kind, rest]) => ({ name, isNeeded: kind === '?', fallback: rest }));
  const filled = text.replaceAll(/\$\{([A-Z_]+):[-?][^}]*\}/g, (_, name) => secrets[name] ?? '').replaceAll('$$', '$');
  return { ...parse(filled, { merge: true }), variables, secrets, used, text };
}

/** The settings in an environment file for compose. */
export const variablesIn = (text) => Object.fromEntries([...text.matchAll(/^([A-Z_]+)=(.*)$/gm)].map(([, name, value]) => [name, value]));

/** The settings that `deploy/secrets.sh` generates. */
function madeSecrets() {
  const folder = mkdtempSync(join(tmpdir(), 'switchboard-test-'));
  try {
    execFileSync(path('deploy/secrets.sh'), [join(folder, '.env')]);
    return readFileSync(join(folder, '.env'), 'utf8');
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The instructions of the Dockerfile: all, those of the last stage, its environment, and the images that it builds on. */
export function dockerfile() {
  const text = read('deploy/Dockerfile').replaceAll(/^\s*#.*\n/gm, '').replaceAll(/\\\n\s*/g, ' ');
  const lines = text.split('\n').filter(Boolean).map((line) => /^(\S+)\s+(.*)$/.exec(line).slice(1));
  const last = lines.slice(lines.findLastIndex(([word]) => word === 'FROM'));
  const environment = Object.fromEntries(
    last.filter(([word]) => word === 'ENV').flatMap(([, rest]) => rest.split(' ').map((pair) => pair.split('='))),
  );
  const all = (word, among = lines) => among.filter(([one]) => one === word).map(([, rest]) => rest);
  const bases = all('FROM').map((rest) => rest.replace(/^--platform=\S+ /, '').split(' ')[0]).filter((name) => name !== 'scratch');
  const [, check] = /CMD (\[.*\])$/.exec(all('HEALTHCHECK')[0]);
  return { lines, last, environment, bases, healthCheck: JSON.parse(check), all };
}

/** The settings of the binary. */
export function knownSettings() {
  const help = execFileSync(BINARY, ['--help'], { encoding: 'utf8' });
  return new Set([...help.matchAll(/\[env: (SWITCHBOARD_[A-Z_]+)/g)].map(([, name]) => name));
}

/** All files under a folder of the repository. */
export function filesUnder(folder) {
  return readdirSync(path(folder), { withFileTypes: true }).flatMap((entry) => {
    const inside = join(folder, entry.name);
    return entry.isDirectory() ? filesUnder(inside) : [inside];
  });
}
