// Says whether what is shown is live, and what a reader must know before believing it: a lost connection, a pause, a
// restart, a correction, a panel with old rows. Words change only when the state does.

import { json } from "./api.js";
import { byId, make, setText } from "./dom.js";
import { clockTime, count, instant, minuteTime, plural } from "./format.js";

/** The status changes slowly; whether the server answers is known from the releases. */
const STATUS_MS = 5_000;
/** How long a restart that is over, or a correction, stays in words. */
const TOLD_MS = 120_000;

export class Health {
  #state = "connecting";
  #title = document.title;
  #at = null;
  #status = null;
  #final = false;
  #votes = null;
  #restart = null;
  #correction = null;
  #onStatus;
  /** Whether the newest question for the status was answered: a server that hangs ends no stream. */
  #answered = true;

  /** `onStatus(status)` is told what /api/status says. */
  constructor(onStatus) {
    this.#onStatus = onStatus;
    setInterval(() => this.#ask(), STATUS_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#ask());
    this.#ask();
    this.#show();
  }

  /** "live" or "lost", as the stream says. */
  onState(state) {
    if (this.#state !== state && state === "live") this.#ask();
    this.#state = state;
    this.#show();
  }

  /** A release: when it was, how many votes it has, and whether the count is complete. */
  onRelease({ at, votes, final }) {
    this.#at = instant(at) ?? Date.now();
    this.#answered = true;
    this.#final = final;
    if (votes !== null && this.#votes !== null && votes < this.#votes && !this.#restart) {
      this.#correction = { from: this.#votes, to: votes, at: this.#at };
    }
    this.#votes = votes ?? this.#votes;
    this.#show();
  }

  async #ask() {
    if (document.hidden) return;
    try {
      const status = await json("/api/status");
      if (this.#status && status.started_at !== this.#status.started_at) this.#restart = { at: instant(status.started_at), over: null };
      if (this.#restart && !this.#restart.over && status.ready) this.#restart.over = Date.now();
      this.#answered = true;
      this.#status = status;
      this.#onStatus(status);
    } catch {
      this.#answered = false;
    }
    this.#show();
  }

  #show() {
    const [state, text] = this.#judge();
    const pill = byId("health");
    pill.dataset.state = state;
    document.documentElement.dataset.health = state;
    setText(byId("health-text"), text);
    if (pill.title !== `Last release ${clockTime(this.#at)}`) pill.title = `Last release ${clockTime(this.#at)}`;
    this.#alerts();
  }

  #judge() {
    if (this.#state === "lost" || (this.#state === "live" && !this.#answered)) {
      return ["lost", this.#at === null ? "No connection. Trying again…" : `Connection lost. Results are of ${clockTime(this.#at)}. Trying again…`];
    }
    if (this.#state === "connecting") return ["connecting", "Connecting…"];
    if (this.#status?.paused?.length) return ["stale", "Counting is paused"];
    return this.#final ? ["final", "Final"] : ["live", "Live"];
  }

  #alerts() {
    const { paused = [], failed_views: failed = [] } = this.#status ?? {};
    const lines = [
      ...this.#restarted(),
      ...this.#corrected(),
      ...paused.map((pause) => [`Counting has been paused since ${clockTime(instant(pause.paused_since))}.`,
        `${sentence(pause.what)}: ${pause.reason}. ${pause.ends_by_itself ? "It goes on by itself; nothing is lost." : "A restart is needed."}`]),
      ...failed.map((view) => [`“${view.view}” shows what it was at ${clockTime(instant(view.since))}.`, "It comes back by itself. Everything else goes on."]),
    ];
    const box = byId("alerts");
    const texts = lines.map((line) => line.join(" ")).join("\n");
    if (texts === (box.dataset.shown ?? "")) return;
    box.dataset.shown = texts;
    box.hidden = lines.length === 0;
    box.replaceChildren(...lines.map(([head, rest]) => {
      const line = make("p");
      line.append(make("strong", "", head), ` ${rest}`);
      return line;
    }));
  }

  #restarted() {
    const restart = this.#restart;
    if (!restart) return [];
    const head = `The count began again at ${minuteTime(restart.at)}.`;
    if (!restart.over) return [[head, "The server was restarted and counts every ballot anew; figures grow until it has caught up. No ballot is lost."]];
    if (Date.now() - restart.over < TOLD_MS) return [[head, "The server was restarted; every ballot is counted again."]];
    this.#restart = null;
    return [];
  }

  #corrected() {
    const correction = this.#correction;
    if (!correction || Date.now() - correction.at > TOLD_MS) return [];
    return [[`The total was corrected at ${minuteTime(correction.at)}.`, `It went from ${count(correction.from)} to ${plural(correction.to, "vote")}.`]];
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
