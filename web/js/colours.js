// Colours: read from the style sheet, so that light and dark are told apart in one place. A party's is the same in
// every chart, list, map and election; those of the known parties can be told apart by colour-blind eyes.

const dark = matchMedia("(prefers-color-scheme: dark)");
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** Places in the palette of the parties that usually stand. */
const KNOWN = new Map([
  ["Commons Alliance", 0], ["Green Valley Party", 1], ["Management Party", 2], ["Savior Party", 3], ["Tech Republic Party", 4],
  ["Harbour Union", 5], ["Northern Voice", 6], ["Civic Reform Party", 7], ["Fair Rents Party", 8], ["Heritage League", 9],
  ["Open Rivers Party", 10], ["New Horizon Party", 11],
]);
/** Of the others, in order of their names. */
let others = new Map();

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

export function palette() {
  return getComputedStyle(document.documentElement).getPropertyValue("--palette").split(",").map((colour) => colour.trim());
}

/** Gives each unknown party a place in the palette behind the known ones. */
export function learnParties(parties) {
  const unknown = [...new Set(parties)].filter((party) => !KNOWN.has(party)).sort();
  others = new Map(unknown.map((party, i) => [party, KNOWN.size + i]));
}

export function partyColour(party) {
  const place = KNOWN.get(party) ?? others.get(party);
  const colours = palette();
  return place === undefined ? theme().accent : colours[place % colours.length];
}

/** Black or white, whichever is read better on `colour`, a #rrggbb. */
export function textOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const part = Number.parseInt(colour.slice(at, at + 2), 16) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) ** 2 > 0.0525 ? "#000000" : "#ffffff";
}
