// A certificate for 127.0.0.1, signed by a private authority.

import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';

const openssl = promisify(execFile).bind(undefined, 'openssl');
const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** Writes the files into `dir` and returns their paths. */
export async function makeCertificate(dir) {
  const [authority, authorityKey, certificate, key] = ['ca.pem', 'ca.key', 'redis.pem', 'redis.key'].map((name) => join(dir, name));
  await openssl(['req', '-x509', ...NEW_KEY, '-subj', '/CN=test authority', '-keyout', authorityKey, '-out', authority]);
  const signed = ['-x509', '-CA', authority, '-CAkey', authorityKey, '-addext', 'basicConstraints=critical,CA:FALSE'];
  await openssl(['req', ...signed, ...NEW_KEY, '-subj', '/CN=redis', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', certificate]);
  return { authority, certificate, key };
}
