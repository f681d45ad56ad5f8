// The API reference: /openapi.json and /asyncapi.json as a page. Everything is inserted as text, never as markup.

import { byId, element } from './ui/dom.js';

const code = (text) => element('code', { text });
const lastOf = (reference) => reference.split('/').at(-1);
const anchorOf = (...words) => words.join('-').replaceAll(/[^\w.-]+/g, '_');

/** Text in which `words in backticks` are code. */
function prose(text = '') {
  return text.split('`').flatMap((part, index) => (part === '' ? [] : [index % 2 ? code(part) : part]));
}

function paragraphs(text = '') {
  return text.split('\n\n').filter(Boolean).map((part) => element('p', {}, ...prose(part)));
}

/** These nodes, joined by `separator`. */
function joined(lists, separator) {
  return lists.flatMap((list, index) => (index === 0 ? list : [separator, ...list]));
}

/** The type of a value, in a few words. Named schemas are links. */
function typeOf(schema) {
  if (schema.$ref) {
    const name = lastOf(schema.$ref);
    return [element('a', { href: `#${anchorOf('type', name)}` }, code(name))];
  }
  if ('const' in schema) return [code(JSON.stringify(schema.const))];
  if (schema.enum) return joined(schema.enum.map((one) => [code(JSON.stringify(one))]), ', ');
  if (schema.oneOf) return joined(schema.oneOf.map(typeOf), ' or ');
  const names = [schema.type ?? 'any value'].flat().map((name) => {
    if (name === 'array') return ['list of ', ...typeOf(schema.items)];
    return name === 'object' && schema.additionalProperties ? ['object of ', ...typeOf(schema.additionalProperties)] : [name];
  });
  return joined(names, ' or ');
}

/** The limits of a value, as a sentence. */
function limitsOf(schema) {
  const range = (from, to, what = '') => {
    if (from === undefined && to === undefined) return [];
    if (to === undefined) return [`${what}at least ${from}`];
    return [from === undefined ? `${what}at most ${to}` : `${what}${from} to ${to}`];
  };
  const limits = [
    ...range(schema.minimum, schema.maximum),
    ...range(schema.minLength, schema.maxLength, 'length '),
    ...range(schema.minItems, schema.maxItems, 'items: '),
    ...(schema.default === undefined ? [] : [`default ${schema.default}`]),
    ...(schema.format === 'uuid' ? ['a UUID'] : []),
  ];
  const pattern = schema.pattern ? [['matches ', code(schema.pattern)]] : [];
  const [first = '', ...rest] = joined([...limits.map((limit) => [limit]), ...pattern], ', ');
  return first === '' ? [] : [first[0].toUpperCase() + first.slice(1), ...rest, '.'];
}

function row(name, required, schema, description = schema.description) {
  const optional = required ? [] : [' ', element('span', { className: 'optional', text: 'optional' })];
  const notes = joined([prose(description), limitsOf(schema)].filter((list) => list.length > 0), ' ');
  return element('tr', {}, element('th', { scope: 'row' }, code(name), ...optional), element('td', {}, ...typeOf(schema)), element('td', {}, ...notes));
}

const table = (rows) => element('table', {}, element('tbody', {}, ...rows));

/** The fields of an object, or of each alternative. */
function bodyOf(schema) {
  if (schema.oneOf) return schema.oneOf.flatMap((one, index) => (index === 0 ? bodyOf(one) : [element('h4', { text: 'or' }), ...bodyOf(one)]));
  if (schema.properties) {
    const fields = Object.entries(schema.properties);
    return [table(fields.map(([name, field]) => row(name, schema.required?.includes(name), field)))];
  }
  const limits = limitsOf(schema);
  return [element('p', {}, ...typeOf(schema), ...(limits.length > 0 ? ['. ', ...limits] : []))];
}

function titled(title, ...content) {
  return [element('h4', { text: title }), ...content];
}

function article(id, heading, ...content) {
  return element('article', { id }, element('h3', {}, ...heading), ...content);
}

function endpoint(path, method, { summary, description, parameters = [], responses }) {
  const rows = parameters.map((one) => row(one.name, one.required, one.schema, [one.description, one.schema.description].filter(Boolean).join(' ')));
  const answers = Object.entries(responses).map(([status, answer]) => {
    const [content] = Object.entries(answer.content ?? {});
    const [type, format] = content ? [typeOf(content[1].schema), [' (', code(content[0]), ')']] : [['no body'], []];
    return element('tr', {}, element('th', { scope: 'row' }, code(status)), element('td', {}, ...type), element('td', {}, ...prose(answer.description), ...format));
  });
  return article(
    anchorOf(method, path),
    [element('span', { className: 'method', text: method.toUpperCase() }), ' ', code(path)],
    element('p', { text: `${summary}.` }),
    ...paragraphs(description),
    ...(rows.length > 0 ? titled('Parameters', table(rows)) : []),
    ...titled('Answers', table(answers)),
  );
}

function socketEvent(key, asyncapi) {
  const { name, summary, payload } = asyncapi.components.messages[key];
  const { reply } = asyncapi.operations[key];
  const ack = reply && asyncapi.components.messages[lastOf(reply.messages[0].$ref)];
  const isEmpty = payload.type === 'object' && !payload.properties;
  return article(
    key,
    [code(name)],
    element('p', {}, ...prose(summary)),
    ...titled('Payload', ...(isEmpty ? [element('p', { text: 'none' })] : bodyOf(payload))),
    ...(ack ? titled('Ack', ...bodyOf(ack.payload.oneOf[0]), element('p', {}, 'or ', ...typeOf(ack.payload.oneOf[1]))) : []),
  );
}

/** A section of the page, with its entry in the contents. */
function section(title, intro, articles) {
  const links = articles.map((one) => element('li', {}, element('a', { href: `#${one.id}`, text: one.querySelector('h3').textContent })));
  byId('contents').append(element('h2', { text: title }), element('ul', {}, ...links));
  byId('reference').append(element('section', {}, element('h2', { text: title }), ...paragraphs(intro), ...articles));
}

async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be read: ${response.status}`);
  return response.json();
}

async function show() {
  const [openapi, asyncapi] = await Promise.all(['/openapi.json', '/asyncapi.json'].map(read));
  const endpoints = Object.entries(openapi.paths).flatMap(([path, item]) => {
    return Object.entries(item).map(([method, operation]) => endpoint(path, method, operation));
  });
  section('HTTP', openapi.info.description, endpoints);
  const events = (action) => Object.keys(asyncapi.operations).filter((key) => asyncapi.operations[key].action === action);
  section('Sent by clients', asyncapi.info.description, events('receive').map((key) => socketEvent(key, asyncapi)));
  section('Sent to clients', '', events('send').map((key) => socketEvent(key, asyncapi)));
  const schemas = Object.entries({ ...openapi.components.schemas, ...asyncapi.components.schemas }).sort(([one], [other]) => one.localeCompare(other));
  const type = ([name, schema]) => article(anchorOf('type', name), [code(name)], ...paragraphs(schema.description), ...bodyOf(schema));
  section('Types', '', schemas.map(type));
}

try {
  await show();
  // The anchor of the address did not exist when the page loaded.
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (error) {
  byId('problem').textContent = error.message;
} finally {
  byId('reference').removeAttribute('aria-busy');
}
