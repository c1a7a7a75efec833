// The ranked list: one row for each candidate with picture, bar, votes, share and change. Rows overtake each other
// calmly. The nation's result and a place's are shown by the same list.

import { learnParties, partyColour } from "./colours.js";
import { make, Portrait, setText } from "./dom.js";
import { count, name, number, percent, plural, signed } from "./format.js";
import { countTo, reorder } from "./motion.js";

export class Ranking {
  #list;
  #rows = new Map();

  constructor(list) {
    this.#list = list;
  }

  /** `candidates` are `{ id, name, party, photo, votes, share, change, note }`, first the one with most votes. */
  render(candidates) {
    const longest = Math.max(1, ...candidates.map((c) => c.votes));
    const items = candidates.map((candidate, i) => {
      let row = this.#rows.get(candidate.id);
      if (!row) this.#rows.set(candidate.id, (row = newRow()));
      fill(row, candidate, i, longest);
      return row.element;
    });
    reorder(this.#list, items);
  }
}

function newRow() {
  const element = make("li", "rank");
  const portrait = new Portrait("medium");
  const [who, party, note] = [make("strong", "rank-name"), make("span", "rank-party"), make("span", "rank-note")];
  const names = make("div", "rank-who");
  names.append(who, party, note);
  const bar = make("div", "rank-bar");
  const fillBar = make("span");
  bar.append(fillBar);
  bar.setAttribute("aria-hidden", "true");
  const figures = make("div", "rank-figures");
  const [share, votes, change] = [make("strong", "rank-share"), make("span", "rank-votes"), make("span", "rank-change")];
  figures.append(share, votes, change);
  element.append(portrait.element, names, figures, bar);
  return { element, portrait, who, party, note, fillBar, share, votes, change };
}

function fill(row, candidate, place, longest) {
  row.portrait.show(candidate.name, candidate.photo, "");
  setText(row.who, candidate.name);
  setText(row.party, candidate.party);
  setText(row.note, candidate.note ?? "");
  row.note.hidden = !candidate.note;
  row.element.classList.toggle("first", place === 0 && candidate.votes > 0);
  row.element.style.setProperty("--mark", partyColour(candidate.party));
  row.fillBar.style.transform = `scaleX(${candidate.votes / longest})`;
  countTo(row.share, candidate.share, (value) => percent(value));
  countTo(row.votes, candidate.votes, (value) => plural(value, "vote"));
  const changed = number(candidate.change);
  row.change.hidden = changed === null;
  setText(row.change, changed === null ? "" : signed(changed));
  row.change.title = changed === null ? "" : `${signed(changed)} points on the election before`;
  row.change.dataset.way = changed > 0.05 ? "up" : changed < -0.05 ? "down" : "same";
}

/** Rows of the view `standings` as the list takes them; `places` are those of place_overview. */
export function fromStandings(rows, places = []) {
  const won = new Map();
  for (const { winner_id: id } of places) if (id) won.set(id, (won.get(id) ?? 0) + 1);
  learnParties(rows.map((row) => name(row.party_affiliation, "No party")));
  const any = rows.some((row) => number(row.votes) > 0);
  return rows
    .map((row) => ({ id: row.candidate_id, name: name(row.candidate_name, "Name not given"), party: name(row.party_affiliation, "No party"),
      photo: row.photo_url, votes: number(row.votes) ?? 0, share: number(row.share_pct), change: any ? row.change_points : null,
      note: won.has(row.candidate_id) ? `${plural(won.get(row.candidate_id), "place")} won` : "", rank: row.rank }))
    .sort((a, b) => a.rank - b.rank);
}

/** The same of the rows of `place_results` of one place; `standings` have the pictures. */
export function fromPlace(rows, standings) {
  const photos = new Map(standings.map((row) => [row.candidate_id, row]));
  return rows
    .map((row) => ({ id: row.candidate_id, name: row.candidate_name, party: row.party_affiliation, photo: photos.get(row.candidate_id)?.photo_url,
      votes: number(row.votes) ?? 0, share: number(row.share_pct), change: row.change_points, rank: row.rank,
      note: nation(row, photos.get(row.candidate_id)) }))
    .sort((a, b) => a.rank - b.rank);
}

function nation(row, standing) {
  const share = number(standing?.share_pct);
  return share === null ? "" : `${percent(share)} in the country`;
}

/** The list in words. */
export const inWords = (candidates) =>
  candidates.map((c) => `${c.name} ${percent(c.share)}, ${count(c.votes)} votes`).join("; ");
