// The views as they are released: one stream of server-sent events for all of them, a snapshot and then changes. While
// the stream can't be had the views are asked for instead. Callers see whole releases only.

import { json, viewUrl } from "./api.js";

/** Wait before the stream is tried again, which the server's refusal or end has closed. */
const RETRY_MS = 2_000;
/** A long list is cut here, as in any page of rows. */
const ROWS_MAX = 10_000;

/** One view's rows by key, so that a change finds its row. */
class Table {
  constructor(key, rows) {
    this.key = key;
    this.byKey = new Map(rows.map((row) => [this.#keyOf(row), row]));
  }

  apply(changes) {
    for (const { op, row } of changes) {
      if (op === "delete") this.byKey.delete(this.#keyOf(row));
      else this.byKey.set(this.#keyOf(row), row);
    }
  }

  #keyOf(row) {
    return JSON.stringify(this.key.length ? this.key.map((column) => row[column]) : row);
  }
}

/**
 * `onRelease({ changed, release, at, whole })` is told which views are new, and whether they came whole; `onState(state)`
 * whether the server answers: "live" or "lost".
 */
export class Live {
  #views;
  #tables = new Map();
  #onRelease;
  #onState;
  #source = null;
  #retry = null;

  /** `views` of what /api/views answers, less those that are not wanted. */
  constructor({ views }, { onRelease, onState }) {
    this.#views = new Map(views.map((view) => [view.name, view.key ?? []]));
    this.#onRelease = onRelease;
    this.#onState = onState;
  }

  start() {
    this.#listen();
    // A tab that was asleep may have missed that the connection ended.
    window.addEventListener("online", () => this.#again(0));
    window.addEventListener("pagehide", () => this.#source?.close());
    window.addEventListener("pageshow", (event) => event.persisted && this.#again(0));
  }

  /** The rows of a view; none before the first release, or where there is no such view. */
  rows(name) {
    return [...(this.#tables.get(name)?.byKey.values() ?? [])];
  }

  #listen() {
    const names = [...this.#views.keys()].map(encodeURIComponent).join(",");
    const source = new EventSource(`/api/changes?views=${names}`);
    this.#source = source;
    source.addEventListener("open", () => this.#onState("live"));
    source.addEventListener("snapshot", (event) => this.#snapshot(JSON.parse(event.data)));
    source.addEventListener("changes", (event) => {
      this.#released(JSON.parse(event.data), false, (name, view) => this.#table(name).apply(view.changes));
    });
    source.addEventListener("error", () => {
      // What is closed stays closed; otherwise the browser connects again by itself.
      if (source.readyState === EventSource.CLOSED) this.#again(RETRY_MS);
      else this.#onState("lost");
    });
  }

  #snapshot(event) {
    this.#released(event, true, (name, view) => this.#tables.set(name, new Table(this.#views.get(name) ?? [], view.rows)));
  }

  /** One that is not in the snapshot has come since: its rows are all told as inserts. */
  #table(name) {
    if (!this.#tables.has(name)) this.#tables.set(name, new Table(this.#views.get(name) ?? [], []));
    return this.#tables.get(name);
  }

  #released({ release, at, views }, whole, take) {
    for (const [name, view] of Object.entries(views)) take(name, view);
    this.#onState("live");
    this.#onRelease({ changed: new Set(Object.keys(views)), release, at, whole });
  }

  #again(waitMs) {
    this.#source?.close();
    clearTimeout(this.#retry);
    this.#retry = setTimeout(async () => {
      await this.#poll();
      this.#listen();
    }, waitMs);
  }

  async #poll() {
    const names = [...this.#views.keys()];
    try {
      const answers = await Promise.all(names.map((name) => json(viewUrl(name, { limit: ROWS_MAX }))));
      this.#snapshot({ at: new Date().toISOString(), views: Object.fromEntries(answers.map((a) => [a.view, a])) });
    } catch {
      this.#onState("lost");
    }
  }
}
