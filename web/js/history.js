// The calls of one user, newest first, a page at a time: GET /v1/calls.

const PAGE = 20;

export class CallHistory {
  rows = [];
  complete = false;
  #userId;
  #token;
  #cursor = null;
  #latest = 0;

  constructor(userId, token) {
    this.#userId = userId;
    this.#token = token;
  }

  /** Starts again with the newest calls. */
  async refresh() {
    const request = ++this.#latest;
    const { calls, nextCursor } = await this.#fetch(null);
    if (request !== this.#latest) return; // a later one is on its way
    this.rows = calls;
    this.#turnedTo(nextCursor);
  }

  /** Adds the next page. */
  async more() {
    if (this.complete) return;
    const request = ++this.#latest;
    const { calls, nextCursor } = await this.#fetch(this.#cursor);
    if (request !== this.#latest) return;
    this.rows = [...this.rows, ...calls];
    this.#turnedTo(nextCursor);
  }

  #turnedTo(nextCursor) {
    this.#cursor = nextCursor;
    this.complete = nextCursor === null;
  }

  async #fetch(cursor) {
    const url = new URL('/v1/calls', location.href);
    url.searchParams.set('userId', this.#userId);
    url.searchParams.set('limit', PAGE);
    if (cursor) url.searchParams.set('cursor', cursor);
    const headers = { accept: 'application/json' };
    if (this.#token) headers.authorization = `Bearer ${this.#token}`;
    const response = await fetch(url, { headers });
    const body = await response.json();
    // Errors are application/problem+json: { title, status, detail }.
    if (!response.ok) throw new Error(body.detail ?? body.title ?? `status ${response.status}`);
    return body;
  }
}
