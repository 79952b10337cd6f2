/** What has happened in the open conversation, in any tab: bursts become one look at the server, and what is ours none. */

const SOON_MS = 150;

export class News {
  #options;
  #timer = 0;
  #heard = new Set(); // requests that something happened to; "" stands for anything else

  /** `options`: ours(request_id), busy() while it is too early to look, look(). */
  constructor(options) {
    this.#options = options;
  }

  /** Something has happened to a request; "" for anything else. */
  hear(request_id = "") {
    this.#heard.add(request_id);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tell(), SOON_MS);
  }

  #tell() {
    const { ours, busy, look } = this.#options;
    if (busy()) return this.hear();
    const known = [...this.#heard].every((id) => id && ours(id));
    this.#heard.clear();
    if (!known) look();
  }
}
