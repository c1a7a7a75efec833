// The ticker: what happened, newest first. What decides the election is read out by screen readers as well.

import { partyColour } from "./colours.js";
import { byId, make, say, setText } from "./dom.js";
import { instant, minuteTime, percent } from "./format.js";
import { glow } from "./motion.js";

const SHOWN_MAX = 200;
const SPOKEN = new Set(["lead", "elected", "final"]);

export class Ticker {
  #items = new Map();
  #href;
  #begun = false;

  constructor(href) {
    this.#href = href;
  }

  /** `events` as `happened` tells them. */
  render(events) {
    say(byId("events"), events.length === 0 ? "Nothing yet. The first place declares soon." : null);
    const sorted = events
      .sort((a, b) => b.at - a.at || order(b) - order(a) || a.id.localeCompare(b.id))
      .slice(0, SHOWN_MAX);
    const present = new Set(sorted.map((event) => event.id));
    for (const [id, item] of this.#items) {
      if (present.has(id)) continue;
      item.remove();
      this.#items.delete(id);
    }
    const list = byId("ticker");
    sorted.forEach((event, i) => {
      let item = this.#items.get(event.id);
      const isNew = !item;
      if (isNew) this.#items.set(event.id, (item = this.#create(event)));
      // A number and its unit stay on one line.
      setText(item.querySelector(".event-text"), event.headline.replaceAll(" %", "\u00a0%"));
      item.style.setProperty("--mark", partyColour(event.party));
      if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
      if (isNew && this.#begun) glow(item);
    });
    const newest = sorted.find((event) => SPOKEN.has(event.event));
    if (this.#begun && newest) setText(byId("spoken"), newest.headline);
    this.#begun = true;
  }

  #create(event) {
    const item = make("li", `event ${event.event}`);
    const time = make("time", "", minuteTime(event.at));
    time.dateTime = new Date(event.at).toISOString();
    const text = make(event.place ? "a" : "span", "event-text", event.headline);
    if (event.place) {
      text.href = this.#href(event.place);
      text.dataset.route = "";
    }
    item.append(time, text);
    return item;
  }
}

/**
 * What has happened: a place declared, another candidate took the lead, the election is decided, all ballots are counted.
 * `places` are rows of place_overview, `leads` the history of election_lead, `call` the row of election_call.
 */
export function happened(places, leads, call, candidates) {
  const known = new Map(candidates.map((candidate) => [candidate.id, candidate]));
  const events = places.filter((place) => place.state === "declared").map((place) => ({
    id: `declared/${place.place}`, event: "declared", at: instant(place.declared_at) ?? 0, place: place.place, party: place.winner_party,
    headline: place.winner_name ? `${place.place}: ${place.winner_name} ${place.gain ? "gains it" : "wins"} with ${percent(place.winner_pct)}`
      : `${place.place}: the first two are level` }));
  let [leader, state] = [null, null];
  for (const { at, rows } of leads) {
    const [row] = rows;
    const now = known.get(row?.leader_id);
    if (now && row.leader_id !== leader) {
      const headline = leader === null ? `${now.name} leads the first count` : `${now.name} takes the lead`;
      events.push({ id: `lead/${at}`, event: "lead", at, party: now.party, headline });
      leader = row.leader_id;
    }
    if (row && row.call !== state && ["elected", "final"].includes(row.call)) {
      const headline = row.call === "final" ? call?.headline : `${now?.name} is elected: no longer can anyone catch up.`;
      events.push({ id: row.call, event: row.call, at, party: now?.party, headline: headline ?? "" });
    }
    state = row?.call ?? state;
  }
  return events;
}

/** Of what happened at the same time, a declaration comes before what it led to. */
const order = (event) => ["declared", "lead", "elected", "final"].indexOf(event.event);
