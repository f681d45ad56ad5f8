// The presence of the watched users, kept up to date across reconnects.
//
// Event: `change` whenever a status changed.

const MOST_WATCHED = 200; // the server allows 500 for each connection

export class Presence extends EventTarget {
  #signaling;
  #watched = new Set();
  #status = new Map();

  constructor(signaling) {
    super();
    this.#signaling = signaling;
    signaling.addEventListener('status', ({ detail }) => {
      this.#status.clear(); // may have changed during the gap
      this.#changed();
      // Subscriptions end with the connection.
      if (detail.status === 'connected') this.#subscribe([...this.#watched]);
    });
    signaling.addEventListener('presence:update', ({ detail }) => {
      if (!this.#watched.has(detail.userId)) return;
      this.#status.set(detail.userId, detail.status);
      this.#changed();
    });
  }

  /** 'online', 'offline', 'busy', or undefined if unknown. */
  of(userId) {
    return this.#status.get(userId);
  }

  /** Watches exactly these users from now on. */
  watch(userIds) {
    const wanted = new Set([...new Set(userIds)].slice(0, MOST_WATCHED));
    const added = [...wanted].filter((id) => !this.#watched.has(id));
    const removed = [...this.#watched].filter((id) => !wanted.has(id));
    this.#watched = wanted;
    for (const id of removed) this.#status.delete(id);
    if (removed.length > 0) this.#signaling.unwatchPresence(removed).catch(() => {});
    this.#subscribe(added);
  }

  async #subscribe(userIds) {
    if (userIds.length === 0) return;
    try {
      await this.#signaling.watchPresence(userIds, (presence) => {
        for (const [id, status] of Object.entries(presence)) if (this.#watched.has(id)) this.#status.set(id, status);
        this.#changed();
      });
    } catch {
      // Not connected: repeated at the next connection. Otherwise the status stays unknown.
    }
  }

  #changed() {
    this.dispatchEvent(new Event('change'));
  }
}
