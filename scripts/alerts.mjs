// Writes k8s/components/prometheus-rule/prometheus-rule.yaml: the alerts of deploy/prometheus/rules/ for the Prometheus operator.
// kustomize reads no files outside its folder, so there must be two; a test compares them.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const HEAD = `# Made from deploy/prometheus/rules/switchboard.yml by \`make alerts\`: change that one. If your operator takes only
# rules with a label of its own (\`release\`, often), add it in an overlay.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: switchboard
  labels:
    app.kubernetes.io/name: switchboard
spec:
`;

/** The rules as an object of the operator, with their comments. */
export function prometheusRule(rules) {
  const groups = rules.slice(rules.indexOf('groups:\n'));
  return HEAD + groups.replaceAll(/^(?=.)/gm, '  ');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = (path) => new URL(`../${path}`, import.meta.url);
  const rules = readFileSync(at('deploy/prometheus/rules/switchboard.yml'), 'utf8');
  writeFileSync(at('k8s/components/prometheus-rule/prometheus-rule.yaml'), prometheusRule(rules));
}
