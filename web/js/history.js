// How a view was in earlier releases: asked for when the rows come whole, and carried on by what is released then.

import { json } from "./api.js";
import { instant } from "./format.js";

export class History {
  #name;
  #points = [];
  #onLoaded;

  constructor(name, onLoaded) {
    this.#name = name;
    this.#onLoaded = onLoaded;
  }

  /** `{ release, at, rows }` of each release in which the view changed, the oldest first. */
  get points() {
    return this.#points;
  }

  /** Takes what was released: all rows if they are `whole`, as at the start and after an interruption. */
  released({ release, at, whole }, rows) {
    if (whole) this.#load();
    else if (release > (this.#points.at(-1)?.release ?? 0)) this.#points.push({ release, at: instant(at), rows });
  }

  async #load() {
    // Those of another run of the server, perhaps.
    this.#points = [];
    try {
      const { releases } = await json(`/api/views/${encodeURIComponent(this.#name)}/history`);
      const last = releases.at(-1)?.release ?? 0;
      const since = this.#points.filter(({ release }) => release > last);
      this.#points = [...releases.map(({ release, at, rows }) => ({ release, at: instant(at), rows })), ...since];
      this.#onLoaded();
    } catch {
      // Lines begin now, then.
    }
  }
}
