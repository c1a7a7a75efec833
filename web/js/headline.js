// The top of the page: the call with its time, the sentence, how much is counted, and what is needed to win.

import { byId, make, setText } from "./dom.js";
import { count, instant, minuteTime, number, percent, plural, turnoutBeside } from "./format.js";
import { countTo } from "./motion.js";

const CALLS = {
  waiting: "Waiting for the first ballots",
  leading: "Leading",
  too_close: "Too close to call",
  elected: "Elected",
  final: "Final",
};

/** What the page and a shared message call the state of the count. */
export const callName = (call) => CALLS[call] ?? "Counting";

/**
 * `summary` and `call` are the only rows of election_summary and election_call, or undefined; `leads` the history of
 * election_lead.
 */
export function renderHeadline(summary, call, leads = []) {
  const badge = byId("call");
  const state = call?.tie && call.call !== "waiting" ? "too_close" : call?.call ?? "waiting";
  badge.dataset.call = state;
  setText(badge, call?.call === "final" && call.tie ? "Final: a tie" : callName(state));
  // What held in the first release after a start may have held before.
  const since = state === "final" ? instant(summary?.last_vote_at) : leads.length > 1 ? leads.at(-1).at : null;
  setText(byId("call-since"), since === null || state === "waiting" ? "" : `since ${minuteTime(since)}`);
  setText(byId("headline-text"), call?.headline ?? "The count has not begun.");
  renderCounted(summary);
  renderNeeded(summary, call);
}

function renderCounted(summary) {
  const known = number(summary?.ballots_expected) !== null;
  const pct = number(summary?.counted_pct);
  byId("headline").classList.toggle("uncounted", !known);
  countTo(byId("counted-pct"), pct, (value) => (value === null ? "–" : percent(floorTenth(value))));
  const bar = byId("progress");
  bar.hidden = !known;
  if (pct !== null) {
    bar.setAttribute("aria-valuenow", String(Math.floor(pct)));
    bar.setAttribute("aria-valuetext", `${percent(floorTenth(pct))} counted, ${count(summary.places_declared)} of ${count(summary.places)} places declared`);
    bar.firstElementChild.style.transform = `scaleX(${pct / 100})`;
  }
  countTo(byId("ballots"), number(summary?.votes_cast), (value) => count(value) + (known ? ` of ${count(summary.ballots_expected)}` : ""));
  setText(byId("declared"), known ? `${count(summary.places_declared)} of ${count(summary.places)}` : "–");
  setText(byId("turnout-name"), pct === 100 ? "Turnout" : "Turnout so far");
  setText(byId("turnout-pct"), pct === 100 ? turnoutBeside(summary) : percent(summary?.turnout_pct));
}

/** Never "100.0 %" before the last ballot. */
const floorTenth = (value) => Math.floor(value * 10 + 1e-9) / 10;

function renderNeeded(summary, call) {
  const line = byId("needed");
  const to_come = number(summary?.ballots_outstanding);
  if (!call || to_come === null || ["waiting", "elected", "final"].includes(call.call)) {
    setText(line, lastVote(summary, call));
    return;
  }
  const first = `${summary.leader_name} is certain to win with ${plural(call.votes_to_win, "vote")}`;
  const behind = number(summary.margin_votes);
  const second = summary.second_name && !call.tie
    ? `; ${summary.second_name} has to make up ${plural(behind, "vote")} among the ${plural(to_come, "ballot")} still to come` : "";
  setText(line, `${first}${second}.`);
}

function lastVote(summary, call) {
  const at = instant(summary?.last_vote_at);
  if (!call || at === null || call.call === "waiting") return "";
  if (call.call === "final") return `All ${plural(summary.ballots_expected, "ballot")} are counted, the last at ${minuteTime(at)}.`;
  return `${plural(summary.ballots_outstanding, "ballot")} still to come.`;
}

/** The sentence for sharing. */
export function soundBite(summary, call) {
  if (!call || call.call === "waiting") return "Election night, as it happens";
  const counted = number(summary?.counted_pct);
  const tail = counted === null || call.call === "final" ? "" : ` (${percent(floorTenth(counted))} counted)`;
  return `${call.headline}${tail}`;
}

/** A share button that hands on `sentence()` and the address of what is shown. */
export function connectShare(button, sentence) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = sentence();
    const url = location.href;
    try {
      if (navigator.share) await navigator.share({ title: document.title, text, url });
      else {
        await navigator.clipboard.writeText(`${text} ${url}`);
        say(button, "Copied");
      }
    } catch (error) {
      if (error.name !== "AbortError") offer(button, `${text} ${url}`);
    }
  });
}

function say(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 2000);
}

/** Where neither sharing nor the clipboard is allowed: the text, to be copied by hand. */
function offer(button, text) {
  const field = make("input");
  field.value = text;
  field.readOnly = true;
  field.setAttribute("aria-label", "Text to share");
  field.addEventListener("blur", () => field.remove());
  button.after(field);
  field.select();
}
