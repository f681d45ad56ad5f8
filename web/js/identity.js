// The identity of this tab: its user, and its device id.
//
// Both live in sessionStorage, so that two tabs can be two people and a reload changes nothing. localStorage only
// remembers the last name as a suggestion for a new tab.

import { read, write } from './storage.js';

const NAME = 'switchboard.name';
const DEVICE = 'switchboard.device';
const TOKEN = 'switchboard.token';
const LOCK_WITHIN_MS = 1_000;

/**
 * The token of this tab's user, if there is one: from before a reload, or from `?token=…`, which is taken out of the
 * address. A server that checks tokens wants one (`switchboard token` makes them for development).
 *
 * A link must not make somebody else of whoever follows it: while the tab has a token that is good, only one of the
 * same user takes its place.
 */
export function ownToken() {
  const given = parameter('token');
  const own = read('sessionStorage', TOKEN) || undefined;
  if (!given) return own;
  const url = new URL(location.href);
  url.searchParams.delete('token');
  history.replaceState(null, '', url);
  const { sub, exp } = claimsOf(own);
  if (sub && exp * 1_000 > Date.now() && sub !== claimsOf(given).sub) return own;
  write('sessionStorage', TOKEN, given);
  return given;
}

/** The user of this tab, if any: from its token, from `?me=…` or from before a reload. */
export function ownName() {
  return claimsOf(ownToken()).sub || parameter('me') || read('sessionStorage', NAME);
}

/** What a token says of itself: who it is for, and until when. The server is the one who checks it. */
function claimsOf(token) {
  try {
    const base64 = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}

/** The name last used in this browser. */
export function suggestedName() {
  return read('localStorage', NAME) ?? '';
}

/** The callee in the address, as in `?me=alice&peer=bob`. */
export function suggestedPeer() {
  return parameter('peer') ?? '';
}

export function rememberName(name) {
  write('sessionStorage', NAME, name);
  write('localStorage', NAME, name);
}

/** Signs this tab out. Also removes the name from the address, or a reload would restore it. */
export function forgetName() {
  write('sessionStorage', NAME, null);
  write('sessionStorage', TOKEN, null);
  const url = new URL(location.href);
  url.searchParams.delete('me');
  history.replaceState(null, '', url);
}

/** The reason why this is not a valid user id, in words; null if it is valid. */
export function nameProblem(name) {
  if (name === '') return 'Please enter a name.';
  if (new TextEncoder().encode(name).length > 128) return 'That name is too long.';
  if (/[\u0000-\u001f\u007f-\u009f]/.test(name)) return 'That name contains characters that cannot be used.';
  return null;
}

/**
 * The id of this tab as a device, the same after a reload.
 *
 * Browsers copy sessionStorage when a tab is duplicated, and two devices with one id would take calls from each other.
 * So a tab holds a lock on its id as long as it lives. A tab that cannot get the lock is a copy and generates a new id.
 * It waits a moment first: during a reload the old page may still hold the lock.
 */
export async function claimDeviceId() {
  const known = read('sessionStorage', DEVICE);
  if (known && (await lock(known))) return known;
  const fresh = randomId();
  write('sessionStorage', DEVICE, fresh);
  lock(fresh);
  return fresh;
}

/** A unique id. Works on insecure pages too, unlike crypto.randomUUID. */
export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function lock(id) {
  if (!navigator.locks) return Promise.resolve(false); // an insecure page: every load is a new device
  return new Promise((resolve) => {
    const untilTheTabGoes = () => {
      resolve(true);
      return new Promise(() => {});
    };
    navigator.locks
      .request(`${DEVICE} ${id}`, { signal: AbortSignal.timeout(LOCK_WITHIN_MS) }, untilTheTabGoes)
      .catch(() => resolve(false));
  });
}

function parameter(name) {
  return new URLSearchParams(location.search).get(name)?.trim();
}
