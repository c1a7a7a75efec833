// Starts the public page: which views it reads, which panel shows which, and what the address asks for: a place's page,
// or the page for a screen on a wall. A project without the election's views gets a plain page of its views.

import { json } from "./api.js";
import { onThemeChange } from "./colours.js";
import { byId, make, say, setText } from "./dom.js";
import { number } from "./format.js";
import { connectShare, renderHeadline, soundBite } from "./headline.js";
import { Health } from "./health.js";
import { History } from "./history.js";
import { renderIntegrity } from "./integrity.js";
import { Live } from "./live.js";
import { Place } from "./place.js";
import { Places } from "./places.js";
import { fromStandings, Ranking } from "./ranking.js";
import { happened, Ticker } from "./ticker.js";
import { Tiles } from "./tiles.js";
import { Timeline } from "./timeline.js";
import { renderTurnout } from "./turnout.js";

const VIEWS = ["election_summary", "election_call", "election_lead", "standings", "vote_shares", "place_overview", "place_results",
  "turnout_by_age", "turnout_by_gender"];
/** Wait before the list of views is asked for again, while there is no answer or none is ready. */
const RETRY_MS = 1_000;
const TITLE = "Election night – Tally";

const html = document.documentElement;
if (new URLSearchParams(location.search).has("kiosk")) html.dataset.kiosk = "";

/** The address of a place's page, or of the whole with null. */
function href(place) {
  const url = new URL(location.href);
  for (const key of [...url.searchParams.keys()]) if (key !== "kiosk") url.searchParams.delete(key);
  if (place !== null) url.searchParams.set("place", place);
  url.hash = "";
  return url.pathname + url.search;
}

start();

async function start() {
  let views = null;
  while (views === null) {
    try {
      const list = await json("/api/views");
      if (list.views.length > 0) views = list;
    } catch {
      setText(byId("health-text"), "No connection. Trying again…");
      byId("health").dataset.state = "lost";
    }
    if (views === null) await new Promise((done) => setTimeout(done, RETRY_MS));
  }
  const wanted = views.views.filter((view) => VIEWS.includes(view.name) && view.access !== "operator");
  if (wanted.some((view) => view.name === "election_call")) new Night({ ...views, views: wanted });
  else (await import("./project.js")).showProject({ alone: true });
}

/** The page of an election. */
class Night {
  #live;
  #health;
  #shares = new History("vote_shares", () => this.#render((...names) => names.includes("vote_shares")));
  #leads = new History("election_lead", () => this.#render((...names) => names.includes("election_lead")));
  #ranking = new Ranking(byId("ranking"));
  #tiles = new Tiles(href);
  #ticker = new Ticker(href);
  #timeline = new Timeline();
  #places = new Places(href);
  #place = new Place(href);
  #bite = "";

  constructor(views) {
    this.#health = new Health(renderIntegrity);
    this.#live = new Live(views, {
      onRelease: (release) => this.#released(release),
      onState: (state) => this.#health.onState(state),
    });
    this.#live.start();
    onThemeChange(() => this.#render(() => true));
    connectShare(byId("share"), () => this.#bite);
    document.addEventListener("click", (event) => this.#follow(event));
    window.addEventListener("popstate", () => this.#routed());
    byId("find").addEventListener("submit", (event) => this.#find(event));
    byId("find-place").addEventListener("change", (event) => this.#find(event));
    this.#routed();
  }

  #row = (name) => this.#live.rows(name)[0];

  #released({ changed, release, at, whole }) {
    if (release !== undefined) html.dataset.release = release;
    for (const [name, history] of [["vote_shares", this.#shares], ["election_lead", this.#leads]]) {
      if (changed.has(name)) history.released({ release, at, whole }, this.#live.rows(name));
    }
    this.#render((...names) => names.some((name) => changed.has(name)));
    const summary = this.#row("election_summary");
    this.#health.onRelease({ at, votes: number(summary?.votes_cast), final: this.#row("election_call")?.call === "final" });
  }

  /** Shows what reads a view of which `isNew` says so. */
  #render(isNew) {
    const rows = (name) => this.#live.rows(name);
    const places = rows("place_overview");
    const candidates = fromStandings(rows("standings"), places);
    if (isNew("election_summary", "election_call", "election_lead")) {
      renderHeadline(this.#row("election_summary"), this.#row("election_call"), this.#leads.points);
    }
    if (isNew("standings", "place_overview")) {
      say(byId("result"), candidates.length === 0 ? "There are no candidates." : null);
      this.#ranking.render(candidates);
      setText(byId("result-note"), candidates.some((c) => number(c.change) !== null) ? "Change in points on the election before" : "");
    }
    if (isNew("place_overview", "standings")) {
      this.#tiles.render(places);
      this.#places.render(places);
      names(places);
    }
    if (isNew("place_overview", "election_lead", "election_call", "standings")) {
      this.#ticker.render(happened(places, this.#leads.points, this.#row("election_call"), candidates));
    }
    if (isNew("vote_shares", "standings")) this.#timeline.render(this.#shares.points, candidates);
    if (isNew("turnout_by_age", "turnout_by_gender")) renderTurnout(rows("turnout_by_age"), rows("turnout_by_gender"));
    this.#renderPlace();
  }

  #renderPlace() {
    const name = new URLSearchParams(location.search).get("place");
    const bite = soundBite(this.#row("election_summary"), this.#row("election_call"));
    const rows = (view) => this.#live.rows(view);
    this.#bite = (name && this.#place.render(name, rows("place_overview"), rows("place_results"), rows("standings"))) || bite;
    const title = name ? `${name} – ${TITLE}` : TITLE;
    if (document.title !== title) document.title = title;
  }

  #follow(event) {
    const link = event.target.closest?.("a[data-route]");
    if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    this.#go(link.getAttribute("href"));
  }

  #go(address) {
    const from = { scroll: window.scrollY };
    history.replaceState(from, "");
    history.pushState({ scroll: 0 }, "", address);
    this.#routed();
  }

  #routed() {
    const place = new URLSearchParams(location.search).get("place");
    byId("home").hidden = place !== null;
    byId("headline").hidden = place !== null && !("kiosk" in html.dataset);
    byId("place").hidden = place === null;
    this.#renderPlace();
    // A reader with a keyboard or a screen reader goes on where the page has changed.
    if (place !== null) byId("place").querySelector(".place-title")?.focus({ preventScroll: true });
    if (!location.hash) window.scrollTo(0, history.state?.scroll ?? 0);
  }

  #find(event) {
    event.preventDefault();
    const field = byId("find-place");
    const wanted = field.value.trim().toLowerCase();
    if (!wanted) return;
    const places = this.#live.rows("place_overview").map((row) => row.place);
    const found = places.find((place) => place.toLowerCase() === wanted)
      ?? (event.type === "submit" ? places.find((place) => place.toLowerCase().startsWith(wanted)) ?? places.find((place) => place.toLowerCase().includes(wanted)) : null);
    field.setCustomValidity(found || event.type !== "submit" ? "" : "There is no such place.");
    if (!found) return field.reportValidity();
    field.value = "";
    this.#go(href(found));
  }
}

/** The names that the search field offers. */
function names(places) {
  const list = byId("place-names");
  if (list.children.length === places.length) return;
  list.replaceChildren(...places.map((row) => {
    const option = make("option");
    option.value = row.place;
    return option;
  }));
}
