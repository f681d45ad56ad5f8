// sessionStorage and localStorage by name. If the browser blocks both, the page works without memory.

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
    // blocked: see above
  }
}
