// Where answers come from: the only module that knows how data reaches the page. Today it asks again and
// again, with If-None-Match; a later version may listen to /api/views/{name}/changes instead. Callers see only
// `watch`, `setInterval`, `refresh`, and the two callbacks, so nothing else would change.

const TIMEOUT_MS = 10_000;

/** URL of a view's rows; `query` holds sort, order, limit, offset. */
export function viewUrl(name, query = {}) {
  const params = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== undefined));
  const text = params.toString();
  return `/api/views/${encodeURIComponent(name)}${text ? `?${text}` : ""}`;
}

/**
 * `onAnswers(changes)` gets a Map from watched name to `{ data }` or `{ problem }`, only what changed.
 * `onRound({ ok, at, error })` is told after every round whether the server answered.
 */
export class Feed {
  #watched = new Map();
  #intervalMs;
  #timer = null;
  #running = false;
  #again = false;
  #onAnswers;
  #onRound;

  constructor({ intervalMs, onAnswers, onRound }) {
    this.#intervalMs = intervalMs;
    this.#onAnswers = onAnswers;
    this.#onRound = onRound;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.refresh()));
    window.addEventListener("online", () => this.refresh());
  }

  /** Keep `name` up to date from `url`. Called again with another URL, it replaces the first. */
  watch(name, url) {
    if (this.#watched.get(name)?.url === url) return;
    this.#watched.set(name, { url, etag: null, last: null });
  }

  setInterval(ms) {
    this.#intervalMs = ms;
    if (!this.#running) this.#plan();
  }

  /** Ask for everything now; `onRound` says when it is done. */
  async refresh() {
    if (this.#running) {
      this.#again = true;
      return;
    }
    this.#stop();
    this.#running = true;
    do {
      this.#again = false;
      await this.#round();
    } while (this.#again);
    this.#running = false;
    this.#plan();
  }

  #stop() {
    clearTimeout(this.#timer);
  }

  #plan() {
    this.#stop();
    if (!document.hidden) this.#timer = setTimeout(() => this.refresh(), this.#intervalMs);
  }

  async #round() {
    const asked = [...this.#watched];
    const results = await Promise.allSettled(asked.map(([, entry]) => ask(entry)));
    const changes = new Map();
    let answered = 0;
    let error = null;
    results.forEach(({ status, value, reason }, i) => {
      const [name, entry] = asked[i];
      if (this.#watched.get(name) !== entry) return; // meanwhile another URL is wanted
      if (status === "rejected") {
        error ??= reason;
        return;
      }
      answered += 1;
      if (value !== null) changes.set(name, value);
    });
    if (changes.size > 0) this.#onAnswers(changes);
    this.#onRound({ ok: error === null && answered > 0, at: Date.now(), error });
  }
}

/** One request: null when nothing changed, `{ data }`, `{ problem }` for a refusal; throws when the server fails. */
async function ask(entry) {
  const headers = { Accept: "application/json" };
  if (entry.etag) headers["If-None-Match"] = entry.etag;
  const response = await fetch(entry.url, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (response.status === 304) return null;
  if (response.ok) {
    const data = await response.json();
    entry.etag = response.headers.get("ETag");
    entry.last = null;
    return { data };
  }
  const problem = await readProblem(response);
  if (response.status >= 500) throw Object.assign(new Error(problem.text), { answered: true });
  entry.etag = null;
  if (entry.last === problem.text) return null;
  entry.last = problem.text;
  return { problem };
}

async function readProblem(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not problem JSON: the status code has to do.
  }
  const text = body?.detail || body?.title || `The server answered ${response.status}.`;
  return { status: response.status, text: String(text) };
}
