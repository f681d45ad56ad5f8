// The server's descriptions of itself, and validation against their schemas.

import Ajv from 'ajv';

const FORMATS = {
  uuid: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/,
  int32: true,
  int64: true,
  double: true,
};

/** The document at this path of the server. */
export async function documentOf(server, path) {
  const response = await fetch(new URL(path, server.url));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/**
 * A validator for the document's schemas: `problems(schema, value)` returns a list of sentences, empty if the value is
 * valid. A schema may refer to others of the document.
 */
export function checkerOf(document) {
  const ajv = new Ajv({ strict: false, allErrors: true, formats: FORMATS });
  ajv.addSchema(document, 'document');
  const compiled = new Map();
  return {
    problems(schema, value) {
      const key = JSON.stringify(schema);
      // References are relative to the whole document, not to the part that is compiled.
      const absolute = () => ajv.compile(JSON.parse(key.replaceAll('"$ref":"#/', '"$ref":"document#/')));
      if (!compiled.has(key)) compiled.set(key, absolute());
      const validate = compiled.get(key);
      return validate(value) ? [] : validate.errors.map(({ instancePath, message }) => `${instancePath || 'it'} ${message}`);
    },
  };
}
