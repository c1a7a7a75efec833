// Starts the page: which views are wanted, which panel shows which, and the reader's settings.

import { renderAlerts } from "./alerts.js";
import { learnCandidates, onThemeChange } from "./colours.js";
import { byId, setText } from "./dom.js";
import { Feed, viewUrl } from "./feed.js";
import { Health } from "./health.js";
import { renderIntegrity } from "./integrity.js";
import { PLACES, Places } from "./places.js";
import { Candidates, Parties, renderSummary } from "./result.js";
import { Timeline, TurnoutBars } from "./turnout.js";

const INTERVAL_S = { min: 1, max: 60, initial: 2 };
const INTERVAL_KEY = "tally.interval_s";
/** More rows than a chart can show. */
const ROWS_MAX = 1000;

const candidates = new Candidates();
const parties = new Parties();
const timeline = new Timeline();
const ages = new TurnoutBars("ages", "age_band", "Turnout by age");
const genders = new TurnoutBars("genders", "gender", "Turnout by gender");

/** The newest answer of each watched name. */
const answers = new Map();

/** Each panel with the names that it reads. Candidates give the colours, so others read them too. */
const panels = [
  [["votes_per_candidate"], (a) => learnCandidates(a?.data?.rows ?? [])],
  [["election_summary", "votes_per_candidate"], renderSummary],
  [["votes_per_candidate"], (a) => candidates.render(a)],
  [["votes_by_party", "votes_per_candidate"], (a, b) => parties.render(a, b)],
  [["votes_over_time", "status"], (a, b) => timeline.render(a, b)],
  [["turnout_by_age"], (a) => ages.render(a)],
  [["turnout_by_gender"], (a) => genders.render(a)],
  [[PLACES], (a) => places.render(a)],
  [["status"], renderIntegrity],
  [["status"], renderAlerts],
  [["status"], (a) => health.onPaused((a?.data?.paused ?? []).length > 0)],
];

function render(isWanted) {
  for (const [names, show] of panels) {
    if (names.some(isWanted)) show(...names.map((name) => answers.get(name)));
  }
}

const intervalS = readInterval();
const health = new Health(intervalS * 1000);
const feed = new Feed({
  intervalMs: intervalS * 1000,
  onAnswers(changes) {
    for (const [name, answer] of changes) answers.set(name, answer);
    const epochs = [...answers.values()].map((answer) => answer.data?.epoch).filter(Number.isFinite);
    if (epochs.length > 0) health.onEpoch(Math.max(...epochs));
    render((name) => changes.has(name));
  },
  onRound: (round) => health.onRound(round),
});

const newestFirst = { sort: "minute", order: "desc", limit: ROWS_MAX };
feed.watch("status", "/api/status");
for (const name of ["election_summary", "votes_per_candidate", "votes_by_party", "turnout_by_age", "turnout_by_gender"]) {
  feed.watch(name, viewUrl(name, { limit: ROWS_MAX }));
}
feed.watch("votes_over_time", viewUrl("votes_over_time", newestFirst));
const places = new Places(feed);

render(() => true);
onThemeChange(() => render((name) => name === "votes_per_candidate"));
connectSettings();
feed.refresh();

function readInterval() {
  let stored = null;
  try {
    stored = localStorage.getItem(INTERVAL_KEY);
  } catch {
    // Storage may be forbidden: the setting is then not remembered.
  }
  const seconds = Math.round(Number(stored ?? INTERVAL_S.initial));
  return seconds >= INTERVAL_S.min && seconds <= INTERVAL_S.max ? seconds : INTERVAL_S.initial;
}

function connectSettings() {
  const slider = byId("interval");
  const show = () => {
    setText(byId("interval-text"), `${slider.value} s`);
    slider.setAttribute("aria-valuetext", `${slider.value} seconds`);
  };
  slider.value = intervalS;
  show();
  slider.addEventListener("input", () => {
    show();
    const ms = Number(slider.value) * 1000;
    health.setInterval(ms);
    feed.setInterval(ms);
    try {
      localStorage.setItem(INTERVAL_KEY, slider.value);
    } catch {
      // As above.
    }
  });
  byId("refresh").addEventListener("submit", (event) => {
    event.preventDefault();
    feed.refresh();
  });
}
