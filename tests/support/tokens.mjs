// Tokens for tests, and the settings of a server that accepts them.

import { createHmac, randomBytes } from 'node:crypto';

export const SECRET = randomBytes(24).toString('base64');

/** The settings of a server with JWT authentication. */
export const JWT = { SWITCHBOARD_AUTH: 'jwt', SWITCHBOARD_JWT_SECRET: SECRET };

const base64 = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** A token of this user that expires after `seconds`; `claims` are added, `sign` replaces the signature. */
export function tokenOf(userId, { seconds = 60, header = { alg: 'HS256' }, sign, ...claims } = {}) {
  const body = `${base64(header)}.${base64({ sub: userId, exp: Date.now() / 1_000 + seconds, ...claims })}`;
  const signature = sign ? sign(body) : createHmac('sha256', SECRET).update(body).digest();
  return `${body}.${signature.toString('base64url')}`;
}
