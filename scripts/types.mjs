// Writes web/protocol.d.ts: TypeScript types of the socket and the HTTP API, from the server's own descriptions. `make types`
// runs it.

import { writeFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { fileURLToPath } from 'node:url';

export const FILE = fileURLToPath(new URL('../web/protocol.d.ts', import.meta.url));

const HEAD = `// What travels between clients and the server. Made from /asyncapi.json and /openapi.json by scripts/types.mjs:
// change the server and run \`make types\`, not this file.
//
//     import { io, type Socket } from 'socket.io-client';
//     import type { Auth, ClientToServerEvents, ServerToClientEvents } from './protocol';
//
//     const auth: Auth = { userId: 'anna', deviceId: 'laptop' };
//     const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(url, { auth });
`;

/** The whole file. */
export function typesOf(openapi, asyncapi) {
  return `${[HEAD, ...namedTypes(openapi, asyncapi), ...socketTypes(asyncapi), httpTypes(openapi)].join('\n')}`;
}

function namedTypes(openapi, asyncapi) {
  const schemas = { ...openapi.components.schemas };
  for (const [name, schema] of Object.entries(asyncapi.components.schemas)) {
    if (schemas[name] && !isDeepStrictEqual(schemas[name], schema)) throw new Error(`two things are called ${name}`);
    schemas[name] = schema;
  }
  const names = Object.keys(schemas).sort();
  return names.map((name) => `${comment(schemas[name].description)}export type ${name} = ${typeOf(schemas[name])};\n`);
}

function socketTypes({ components: { messages }, operations }) {
  const acks = Object.values(messages).filter((_, index) => Object.keys(messages)[index].startsWith('ack.'));
  const client = [];
  const server = [];
  for (const [key, { action, reply }] of Object.entries(operations)) {
    const { name, summary, payload } = messages[key];
    const does = comment(summary, '  ');
    if (action === 'send') {
      server.push(`${does}  '${name}': (event: ${typeOf(payload, '  ')}) => void;\n`);
    } else {
      const ack = `ack: (answer: ${ackName(messages[lastOf(reply.messages[0].$ref)].name)}) => void`;
      const given = `payload: ${typeOf(payload, '  ')}`;
      const isOptional = payload.type === 'object' && !payload.required;
      client.push(`${does}  '${name}': ${isOptional ? `(...args: [${ack}] | [${given}, ${ack}])` : `(${given}, ${ack})`} => void;\n`);
    }
  }
  return [
    ...acks.map(({ name, payload }) => `export type ${ackName(name)} = ${typeOf(payload)};\n`),
    `/** What clients are sent. */\nexport interface ServerToClientEvents {\n${server.join('')}}\n`,
    `/** What clients send. Each event is answered: with a callback, or with \`emitWithAck\`. */\nexport interface ClientToServerEvents {\n${client.join('')}}\n`,
  ];
}

function httpTypes({ paths }) {
  const endpoints = [];
  for (const [path, item] of Object.entries(paths)) {
    for (const [method, { summary, parameters = [], responses }] of Object.entries(item)) {
      const given = (place) => {
        const fields = parameters.filter((one) => one.in === place);
        return fields.map(({ name, required, schema, description }) => {
          return `${comment(description, '      ')}      ${name}${required ? '' : '?'}: ${typeOf(schema, '      ')};\n`;
        });
      };
      const places = ['path', 'query'].map((place) => [place, given(place)]).filter(([, fields]) => fields.length > 0);
      const answers = Object.entries(responses).filter(([status]) => status.startsWith('2'));
      const answer = answers.map(([, { content }]) => (content ? typeOf(content['application/json'].schema, '    ') : 'undefined'));
      endpoints.push(
        `${comment(summary, '  ')}  '${method.toUpperCase()} ${path}': {\n`,
        ...places.map(([place, fields]) => `    ${place}: {\n${fields.join('')}    };\n`),
        `    answer: ${answer.join(' | ')};\n  };\n`,
      );
    }
  }
  return `/** The HTTP API. What is refused is answered with a \`Problem\`. Lists in a query have commas between. */\nexport interface HttpApi {\n${endpoints.join('')}}\n`;
}

function typeOf(schema, indent = '') {
  if (schema.$ref) return lastOf(schema.$ref);
  if ('const' in schema) return literal(schema.const);
  if (schema.enum) return schema.enum.map(literal).join(' | ');
  if (schema.oneOf) return schema.oneOf.map((one) => typeOf(one, indent)).join(' | ');
  const types = [schema.type ?? 'unknown'].flat();
  const kinds = { array: () => listOf(schema.items, indent), object: () => objectOf(schema, indent), integer: () => 'number' };
  return types.map((type) => kinds[type]?.() ?? type).join(' | ');
}

function listOf(items, indent) {
  const type = typeOf(items, indent);
  return type.includes('|') ? `(${type})[]` : `${type}[]`;
}

function objectOf({ properties, required = [], additionalProperties }, indent) {
  if (!properties) return additionalProperties ? `Record<string, ${typeOf(additionalProperties, indent)}>` : 'Record<string, never>';
  const inner = `${indent}  `;
  const fields = Object.entries(properties).map(([name, schema]) => {
    return `${comment(schema.description, inner)}${inner}${name}${required.includes(name) ? '' : '?'}: ${typeOf(schema, inner)};\n`;
  });
  return `{\n${fields.join('')}${indent}}`;
}

const literal = (value) => (typeof value === 'string' ? `'${value}'` : String(value));
const lastOf = (reference) => reference.split('/').at(-1);
const ackName = (title) => `${title}Ack`;
const comment = (text, indent = '') => (text ? `${indent}/** ${text.replaceAll(/\s+/g, ' ')} */\n` : '');

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { documentOf } = await import('../tests/support/schemas.mjs');
  const { startServer } = await import('../tests/support/server.mjs');
  const server = await startServer();
  try {
    const [openapi, asyncapi] = await Promise.all(['/openapi.json', '/asyncapi.json'].map((path) => documentOf(server, path)));
    await writeFile(FILE, typesOf(openapi, asyncapi));
  } finally {
    await server.stop();
  }
}
