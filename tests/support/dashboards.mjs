// The shipped dashboards and their queries.

import { filesUnder, read } from './deployment.mjs';

export const dashboards = () => filesUnder('deploy/grafana/dashboards').map((file) => JSON.parse(read(file)));

/** The panels with data. */
export const panelsOf = ({ panels }) => panels.filter(({ type }) => type !== 'row');

export const queriesOf = (panels) => panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));

/** A panel's query, as Grafana sends it when all nodes are chosen. */
export const filledIn = (query, interval) => query.replaceAll('$__rate_interval', interval).replaceAll(/\$(namespace|instance)\b/g, '.*');

/** The series in an expression: `{name, labels, isRange}`. */
export function selectorsIn(expression) {
  const found = expression.matchAll(/\b(switchboard_\w+|process_\w+|up|ALERTS)\b(?!\s*\()(?:\{([^}]*)\})?(\[)?/g);
  return [...found].map(([, name, inside = '', range]) => ({
    name,
    labels: Object.fromEntries([...inside.matchAll(/(\w+)(?:=~|=|!=|!~)"([^"]*)"/g)].map(([, label, text]) => [label, text])),
    isRange: range === '[',
  }));
}
