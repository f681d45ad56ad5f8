// sessionStorage and localStorage by name. A browser may forbid both; then the page works, and only forgets.

export function read(storage, key) {
  try {
    return globalThis[storage].getItem(key);
  } catch {
    return null;
  }
}

/** A value of null removes the key. */
export function write(storage, key, value) {
  try {
    if (value === null) globalThis[storage].removeItem(key);
    else globalThis[storage].setItem(key, value);
  } catch {
    // forbidden: see above
  }
}
