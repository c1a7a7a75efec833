// A place's own page: its result once it has declared, how far it is before, and the places around it.

import { byId, make, setText } from "./dom.js";
import { count, instant, minuteTime, percent, plural, signed, turnoutBeside } from "./format.js";
import { fromPlace, Ranking } from "./ranking.js";
import { initials } from "./tiles.js";
import { partyColour, textOn } from "./colours.js";

const STATES = { waiting: "Not counting yet", counting: "Counting", declared: "Declared" };

export class Place {
  #box = byId("place");
  #shown = null;
  #href;

  constructor(href) {
    this.#href = href;
  }

  /** `places` and `results` are rows of place_overview and place_results, `standings` those of the nation. */
  render(name, places, results, standings) {
    if (this.#shown?.name !== name) this.#shown = this.#build(name);
    const { parts, ranking } = this.#shown;
    const row = places.find((place) => place.place === name);
    if (!row) {
      setText(parts.title, name);
      setText(parts.state, places.length === 0 ? "Waiting for data…" : "There is no such place.");
      return null;
    }
    setText(parts.title, row.place);
    setText(parts.region, row.region);
    parts.badge.dataset.call = row.state === "declared" ? "final" : row.state === "counting" ? "leading" : "waiting";
    setText(parts.badge, STATES[row.state]);
    const sentence = inWords(row);
    setText(parts.state, sentence);
    this.#facts(row);
    const declared = row.state === "declared";
    parts.result.hidden = !declared;
    parts.wait.hidden = declared;
    parts.meter.firstElementChild.style.transform = `scaleX(${row.counted_pct / 100})`;
    if (declared) ranking.render(fromPlace(results.filter((result) => result.place === name), standings));
    this.#around(row, places);
    return sentence;
  }

  #build(name) {
    const parts = {};
    const back = make("a", "back", "← All results");
    back.href = this.#href(null);
    back.dataset.route = "";
    const head = make("section", "panel full place-head");
    parts.region = make("p", "quiet");
    parts.title = make("h1", "place-title", name);
    parts.title.tabIndex = -1;
    parts.badge = make("span", "badge");
    parts.state = make("p", "place-state");
    const badge = make("p", "call");
    badge.append(parts.badge);
    head.append(back, parts.region, parts.title, badge, parts.state);

    const main = make("section", "panel wide");
    main.append(make("h2", "", "Result"));
    parts.result = make("ol", "ranking");
    parts.wait = make("div", "place-wait");
    parts.meter = make("div", "progress");
    parts.meter.append(make("span"));
    parts.wait.append(parts.meter, make("p", "quiet", "The result is shown when every ballot here is counted. Until then nothing tells how its ballots fall, so that no vote can be guessed."));
    main.append(parts.result, parts.wait);

    const side = make("section", "panel narrow");
    parts.facts = make("dl", "facts");
    parts.aroundTitle = make("h2");
    parts.around = make("ul", "around");
    side.append(make("h2", "", "This place"), parts.facts, parts.aroundTitle, parts.around);
    this.#box.replaceChildren(head, main, side);
    return { name, parts, ranking: new Ranking(parts.result) };
  }

  #facts(row) {
    const facts = [["Registered voters", count(row.registered)], ["Ballots", count(row.ballots_expected)]];
    if (row.state === "declared") {
      facts.push(["Turnout", turnoutBeside(row)], ["Declared at", minuteTime(instant(row.declared_at))]);
      if (row.winner_name) facts.push(["Ahead by", `${plural(row.margin_votes, "vote")} (${signed(row.margin_points).slice(1)} points)`]);
    }
    if (row.previous_party) facts.push(["Won last time by", row.previous_party]);
    this.#shown.parts.facts.replaceChildren(...facts.map(([term, value]) => {
      const line = make("div");
      line.append(make("dt", "", term), make("dd", "", value));
      return line;
    }));
  }

  #around(row, places) {
    setText(this.#shown.parts.aroundTitle, `Also in ${row.region}`);
    const others = places.filter((place) => place.region === row.region && place.place !== row.place).sort((a, b) => a.place.localeCompare(b.place));
    this.#shown.parts.aroundTitle.hidden = others.length === 0;
    const known = [...this.#shown.parts.around.children];
    if (known.map((item) => item.dataset.key).join() === others.map(keyOf).join()) return;
    this.#shown.parts.around.replaceChildren(...others.map((place) => {
      const item = make("li");
      item.dataset.key = keyOf(place);
      const swatch = make("span", `swatch${place.winner_party ? "" : " open"}`, place.winner_party ? initials(place.winner_party) : "");
      swatch.setAttribute("aria-hidden", "true");
      if (place.winner_party) {
        swatch.style.backgroundColor = partyColour(place.winner_party);
        swatch.style.color = textOn(partyColour(place.winner_party));
      }
      const link = make("a", "", place.place);
      link.href = this.#href(place.place);
      link.dataset.route = "";
      item.append(swatch, link, make("span", "quiet", place.winner_name ?? STATES[place.state].toLowerCase()));
      return item;
    }));
  }
}

const keyOf = (place) => `${place.place}/${place.state}`;

function inWords(row) {
  if (row.state === "waiting") return `${row.place} has not begun to count its ${plural(row.ballots_expected, "ballot")}.`;
  if (row.state === "counting") {
    return row.counted_pct > 0 ? `${row.place} has counted more than ${row.counted_pct} % of its ${plural(row.ballots_expected, "ballot")}.`
      : `${row.place} has begun to count its ${plural(row.ballots_expected, "ballot")}.`;
  }
  if (!row.winner_name) return `The first two in ${row.place} are level.`;
  const how = row.gain ? `a gain for the ${row.winner_party} from the ${row.previous_party}` : `a hold for the ${row.winner_party}`;
  return `${row.winner_name} wins ${row.place} with ${percent(row.winner_pct)}, ${how}.`;
}
