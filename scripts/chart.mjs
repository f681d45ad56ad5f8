// Writes the README of the Helm chart from the comments in its values.yaml: `make chart`. A test compares.

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const CHART = new URL('../deploy/helm/switchboard/', import.meta.url);

const HEAD = `# switchboard Helm chart

Nodes of switchboard with a migration Job, autoscaler, disruption budget, network policies, ingress and monitoring.
Redis and Postgres are yours. The guide is [docs/guides/kubernetes.md](../../../docs/guides/kubernetes.md).

\`\`\`sh
helm install switchboard deploy/helm/switchboard --namespace switchboard --create-namespace \\
  --set image.repository=registry.example.com/switchboard \\
  --set secret.existingSecret=switchboard \\
  --set settings.SWITCHBOARD_AUTH=jwt \\
  --set settings.SWITCHBOARD_JWKS_URL=https://id.example.com/.well-known/jwks.json
\`\`\`

[\`ci/production-values.yaml\`](ci/production-values.yaml) renders the objects of
[\`k8s/overlays/production\`](../../../k8s/overlays/production); a test compares them. \`values.schema.json\` refuses
values that are not listed here, and secrets among the settings.

## Values

Generated from the comments in \`values.yaml\` by \`make chart\`.

| value | default | description |
|---|---|---|
`;

const isTree = (node) => node?.items?.length > 0 && !node.flow && node.items[0].key !== undefined;

/** Each value as \`{ path, value, description }\`. A comment above a key describes it, or the whole of what is below it. */
export function describeValues(text, { parseDocument, isMap }) {
  const rows = [];
  const visit = (map, path, inherited) => {
    for (const [index, { key, value }] of map.items.entries()) {
      // The comment above the first key of a map is the map's own.
      const comment = key.commentBefore ?? (index === 0 ? map.commentBefore : undefined);
      const description = (comment ?? '').split('\n').map((line) => line.trim()).join(' ').trim();
      const here = [...path, key.value];
      if (isMap(value) && isTree(value)) visit(value, here, description || inherited);
      else rows.push({ path: here.join('.'), value: value?.toJSON?.() ?? null, description: description || inherited || '' });
    }
  };
  const { contents } = parseDocument(text);
  visit(contents, [], '');
  return rows;
}

export function chartReadme(text, yaml) {
  const rows = describeValues(text, yaml).map(({ path, value, description }) => `| \`${path}\` | \`${JSON.stringify(value)}\` | ${description.replaceAll('|', '\\|')} |`);
  return `${HEAD}${rows.join('\n')}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const yaml = createRequire(new URL('../tests/package.json', import.meta.url))('yaml');
  writeFileSync(new URL('README.md', CHART), chartReadme(readFileSync(new URL('values.yaml', CHART), 'utf8'), yaml));
}
