// The tile map: one tile for each place where it roughly is, in the colour of the party that won there once it has
// declared. Every tile is a link to the place's page; arrow keys go from tile to tile.

import { partyColour, textOn } from "./colours.js";
import { byId, make, say, setText } from "./dom.js";
import { count, minuteTime, instant, percent } from "./format.js";
import { glow } from "./motion.js";

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Tiles {
  #tiles = new Map();
  #href;

  /** `href(place)` is the address of a place's page. */
  constructor(href) {
    this.#href = href;
    const box = byId("tiles");
    box.addEventListener("keydown", (event) => this.#step(event));
    for (const kind of ["focusin", "pointerover"]) box.addEventListener(kind, (event) => this.#tell(event.target.closest?.(".tile")));
    box.addEventListener("pointerleave", () => this.#tell(null));
  }

  /** `places` are rows of place_overview. */
  render(places) {
    say(byId("map"), places.length === 0 ? "It is not known where votes come from." : null);
    const box = byId("tiles");
    for (const place of places) {
      let tile = this.#tiles.get(place.place);
      if (!tile) {
        tile = { element: make("a", "tile") };
        tile.element.dataset.route = "";
        tile.element.dataset.place = place.place;
        tile.element.href = this.#href(place.place);
        tile.element.style.gridColumn = String(place.tile_column + 1);
        tile.element.style.gridRow = String(place.tile_row + 1);
        tile.code = make("span", "tile-code", place.code);
        tile.code.setAttribute("aria-hidden", "true");
        tile.party = make("span", "tile-party");
        tile.party.setAttribute("aria-hidden", "true");
        tile.element.append(tile.code, tile.party);
        this.#tiles.set(place.place, tile);
        box.append(tile.element);
      }
      const declared = place.state === "declared";
      if (declared && tile.row && tile.row.state !== "declared") glow(tile.element);
      tile.row = place;
      tile.element.dataset.state = place.state;
      tile.element.setAttribute("aria-label", describe(place));
      setText(tile.party, place.winner_party ? initials(place.winner_party) : declared ? "=" : "");
      const colour = place.winner_party ? partyColour(place.winner_party) : "";
      tile.element.style.backgroundColor = colour;
      tile.element.style.color = colour ? textOn(colour) : "";
      tile.element.style.setProperty("--done", `${place.counted_pct}%`);
    }
    // One stop for the tab key; from there arrows.
    const stop = [...this.#tiles.values()].find((tile) => tile.element === document.activeElement) ?? this.#tiles.values().next().value;
    for (const tile of this.#tiles.values()) tile.element.tabIndex = tile === stop ? 0 : -1;
    this.#legend(places);
  }

  #legend(places) {
    const won = new Map();
    for (const place of places) if (place.winner_party) won.set(place.winner_party, (won.get(place.winner_party) ?? 0) + 1);
    const items = [...won].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([party, n]) => {
      const item = make("li");
      const swatch = make("span", "swatch", initials(party));
      swatch.style.backgroundColor = partyColour(party);
      swatch.style.color = textOn(partyColour(party));
      swatch.setAttribute("aria-hidden", "true");
      item.append(swatch, make("span", "", `${party} ${count(n)}`));
      return item;
    });
    const level = places.filter((place) => place.state === "declared" && !place.winner_party).length;
    if (level > 0) {
      const item = make("li");
      const swatch = make("span", "swatch level", "=");
      swatch.setAttribute("aria-hidden", "true");
      item.append(swatch, make("span", "", `Level ${count(level)}`));
      items.push(item);
    }
    const open = places.filter((place) => place.state !== "declared").length;
    if (open > 0) {
      const item = make("li");
      item.append(make("span", "swatch open"), make("span", "", `Not declared ${count(open)}`));
      items.push(item);
    }
    byId("legend").replaceChildren(...items);
  }

  #tell(element) {
    const tile = element ? this.#tiles.get(element.dataset.place) : null;
    setText(byId("tile-note"), tile ? describe(tile.row) : "Each tile is a place. Choose one for its result.");
  }

  #step(event) {
    const way = WAYS[event.key];
    const here = this.#tiles.get(event.target.dataset?.place)?.row;
    if (!way || !here || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    // The nearest tile that way: straight ahead before aside.
    const ahead = [...this.#tiles.values()]
      .map((tile) => ({ tile, along: (tile.row.tile_column - here.tile_column) * way[0] + (tile.row.tile_row - here.tile_row) * way[1],
        aside: Math.abs((tile.row.tile_column - here.tile_column) * way[1]) + Math.abs((tile.row.tile_row - here.tile_row) * way[0]) }))
      .filter(({ along }) => along > 0)
      .sort((a, b) => a.along + 3 * a.aside - (b.along + 3 * b.aside))[0];
    if (!ahead) return;
    for (const tile of this.#tiles.values()) tile.element.tabIndex = -1;
    ahead.tile.element.tabIndex = 0;
    ahead.tile.element.focus();
  }
}

/** A party's letters, so that no tile is told by its colour alone. */
export const initials = (party) => [...String(party ?? "")].filter((letter) => /\p{Lu}/u.test(letter)).slice(0, 2).join("");

/** A place's state in a sentence. */
export function describe(place) {
  if (place.state === "declared" && !place.winner_name) {
    return `${place.place}: the first two are level. Declared ${minuteTime(instant(place.declared_at))}.`;
  }
  if (place.state === "declared") {
    const how = place.gain ? `gain from ${place.previous_party}` : "hold";
    return `${place.place}: ${place.winner_name}, ${place.winner_party} ${how}, ${percent(place.winner_pct)}. Declared ${minuteTime(instant(place.declared_at))}.`;
  }
  if (place.state === "counting") {
    return place.counted_pct > 0 ? `${place.place}: counting, more than ${place.counted_pct} % done.` : `${place.place}: counting has begun.`;
  }
  return `${place.place}: not counting yet.`;
}
