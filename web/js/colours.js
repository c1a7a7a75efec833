// Colours: read from the style sheet, so that light and dark are told apart in one place, and one per candidate,
// the same in every chart, table and reload.

import { number } from "./format.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const stillness = matchMedia("(prefers-reduced-motion: reduce)");
let places = new Map();

/** Calls `redraw` when the colour scheme or the wish for less motion changes. */
export function onThemeChange(redraw) {
  for (const query of [dark, stillness]) query.addEventListener("change", redraw);
}

export const lessMotion = () => stillness.matches;

/** The style sheet's colours for charts. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { text: read("--text"), quiet: read("--quiet"), line: read("--line"), panel: read("--panel"),
    accent: read("--accent"), empty: read("--empty"), font: style.fontFamily };
}

/** Gives each candidate a place in the palette, by id: it does not move when the order of votes does. */
export function learnCandidates(rows) {
  const ids = rows.map((row) => row.candidate_id).sort((a, b) => compareIds(String(a), String(b)));
  places = new Map(ids.map((id, i) => [id, i]));
}

function compareIds(a, b) {
  const [x, y] = [number(a), number(b)];
  if (x !== null && y !== null && x !== y) return x - y;
  return a < b ? -1 : a > b ? 1 : 0;
}

export function candidateColour(id) {
  const palette = getComputedStyle(document.documentElement).getPropertyValue("--palette").split(",");
  const place = places.get(id);
  return place === undefined ? theme().accent : palette[place % palette.length].trim();
}
