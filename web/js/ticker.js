// The ticker: what happened, newest first. What decides the election is read out by screen readers as well.

import { partyColour } from "./colours.js";
import { byId, make, say, setText } from "./dom.js";
import { instant, minuteTime } from "./format.js";
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

  /** `events` are rows of election_events; `parties` gives a candidate's party. */
  render(events, parties) {
    say(byId("events"), events.length === 0 ? "Nothing yet. The first place declares soon." : null);
    const sorted = events
      .map((event) => ({ ...event, id: `${event.event}/${event.subject}`, at: instant(event.time) ?? 0 }))
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
      setText(item.querySelector(".event-text"), event.headline);
      item.style.setProperty("--mark", partyColour(parties.get(event.candidate_id)));
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

/** Of what happened at the same time, a declaration comes before what it led to. */
const order = (event) => ["declared", "lead", "elected", "final"].indexOf(event.event);
