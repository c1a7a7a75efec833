// Says whether what is shown is live: connecting, live, stale, or connection lost. The words change only when the
// state does, so that a screen reader is told once.

import { byId, setText } from "./dom.js";
import { clockTime, count, duration } from "./format.js";

const STALE_AFTER_MS = 5_000;

export class Health {
  #intervalMs;
  #round = null;
  #successAt = null;
  #state = null;
  #epoch = null;
  #paused = false;

  constructor(intervalMs) {
    this.#intervalMs = intervalMs;
    setInterval(() => this.#show(), 1000);
    this.#show();
  }

  setInterval(ms) {
    this.#intervalMs = ms;
  }

  /** What the feed tells after every round. */
  onRound(round) {
    this.#round = round;
    if (round.ok) this.#successAt = round.at;
    this.#show();
  }

  onEpoch(epoch) {
    this.#epoch = epoch;
  }

  /** Whether the engine waits for Kafka or Postgres. */
  onPaused(paused) {
    this.#paused = paused;
    this.#show();
  }

  #show() {
    const [state, text] = this.#judge();
    const pill = byId("health");
    if (this.#state !== state) {
      this.#state = state;
      pill.dataset.state = state;
      document.documentElement.dataset.health = state;
      setText(byId("health-text"), text);
      document.title = `${state === "lost" || state === "stale" ? "(not live) " : ""}Election results – Tally`;
    }
    const age = this.#successAt === null ? "" : ` (${duration((Date.now() - this.#successAt) / 1000)} ago)`;
    setText(byId("health-time"), clockTime(this.#successAt) + (state === "live" ? "" : age));
    setText(byId("health-epoch"), count(this.#epoch));
  }

  #judge() {
    const since = this.#successAt === null ? "" : ` Results are of ${clockTime(this.#successAt)}.`;
    if (this.#round && !this.#round.ok) {
      return this.#round.error?.answered
        ? ["stale", `The server has a problem.${since} Trying again…`]
        : ["lost", `Connection lost.${since} Trying again…`];
    }
    if (this.#successAt === null) return ["connecting", "Connecting…"];
    if (Date.now() - this.#successAt > 2 * this.#intervalMs + STALE_AFTER_MS) return ["stale", `Out of date.${since}`];
    if (this.#paused) return ["stale", "Counting is paused."];
    return ["live", "Live"];
  }
}
