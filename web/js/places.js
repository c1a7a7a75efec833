// The table of all places: sorted, filtered and cut into pages here; what is wanted stands in the address, so that a
// link shows the same.

import { partyColour } from "./colours.js";
import { byId, make, resize, say, setText } from "./dom.js";
import { count, instant, minuteTime, name, number, percent, signed } from "./format.js";

const STATES = { declared: "Declared", counting: "Counting", waiting: "Waiting" };
const RANKS = { declared: 2, counting: 1, waiting: 0 };
/** Column → heading, what it sorts by, and its text. */
const COLUMNS = [
  { id: "place", title: "Place", by: (row) => row.place, text: (row) => row.place },
  { id: "state", title: "Declared", by: (row) => RANKS[row.state] * 1e13 + (instant(row.declared_at) ?? row.counted_pct), numeric: true, later: true,
    text: (row) => (row.state === "declared" ? minuteTime(instant(row.declared_at)) : STATES[row.state] ?? "") },
  { id: "winner", title: "Winner", by: (row) => row.winner_name ?? "\uffff", text: (row) => name(row.winner_name, row.state === "declared" ? "Level" : "–") },
  { id: "share", title: "Share", by: (row) => number(row.winner_pct) ?? -1, numeric: true, text: (row) => percent(row.winner_pct) },
  { id: "margin", title: "Ahead by", by: (row) => number(row.margin_points) ?? -1, numeric: true, second: true,
    text: (row) => (number(row.margin_points) === null ? "–" : `${signed(row.margin_points).slice(1)} points`) },
  { id: "turnout", title: "Turnout", by: (row) => number(row.turnout_pct) ?? -1, numeric: true, second: true, text: (row) => percent(row.turnout_pct) },
];
const DEFAULTS = { sort: "state", order: "desc", page: 1, rows: 10, filter: "" };

export class Places {
  #panel = byId("places");
  #rows = [];
  #wanted = { ...DEFAULTS };
  #href;

  constructor(href) {
    this.#href = href;
    this.#read();
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("places-size", "change", (event) => this.#want({ rows: Number(event.target.value), page: 1 }));
    on("places-prev", "click", () => this.#want({ page: this.#wanted.page - 1 }));
    on("places-next", "click", () => this.#want({ page: this.#wanted.page + 1 }));
    on("places-page", "change", (event) => this.#want({ page: Math.round(Number(event.target.value)) || 1 }));
    on("places-filter", "input", (event) => this.#want({ filter: event.target.value, page: 1 }));
    this.#panel.querySelector(".pager").addEventListener("submit", (event) => event.preventDefault());
    resize(this.#panel.querySelector("thead tr"), COLUMNS.length, () => this.#headCell());
  }

  render(rows) {
    this.#rows = rows;
    this.#show();
  }

  #read() {
    const params = new URLSearchParams(location.search);
    const { rows, page, sort, order, filter } = Object.fromEntries(params);
    if (COLUMNS.some((column) => column.id === sort)) this.#wanted.sort = sort;
    if (order === "asc" || order === "desc") this.#wanted.order = order;
    if (["10", "25", "50", "100"].includes(rows)) this.#wanted.rows = Number(rows);
    if (Number(page) >= 1) this.#wanted.page = Math.round(Number(page));
    if (filter) this.#wanted.filter = filter;
    byId("places-size").value = String(this.#wanted.rows);
    byId("places-filter").value = this.#wanted.filter;
  }

  #want(change) {
    Object.assign(this.#wanted, change);
    this.#show();
    const url = new URL(location.href);
    for (const [key, value] of Object.entries(this.#wanted)) {
      if (value === DEFAULTS[key]) url.searchParams.delete(key);
      else url.searchParams.set(key, value);
    }
    history.replaceState(history.state, "", url);
  }

  #show() {
    const wanted = this.#wanted;
    const filter = wanted.filter.trim().toLowerCase();
    const fits = (row) => [row.place, row.region, row.winner_name, row.winner_party].some((text) => String(text ?? "").toLowerCase().includes(filter));
    const column = COLUMNS.find(({ id }) => id === wanted.sort);
    const sign = wanted.order === "asc" ? 1 : -1;
    const found = this.#rows.filter(fits).sort((a, b) => sign * compare(column.by(a), column.by(b)) || a.place.localeCompare(b.place));
    const pages = Math.max(1, Math.ceil(found.length / wanted.rows));
    wanted.page = Math.min(Math.max(1, wanted.page), pages);
    const none = this.#rows.length === 0 ? "It is not known where votes come from." : `No place fits “${wanted.filter}”.`;
    say(this.#panel, found.length === 0 ? none : null);
    this.#head();
    this.#pager(pages);
    const first = (wanted.page - 1) * wanted.rows;
    const lines = resize(this.#panel.querySelector("tbody"), Math.min(wanted.rows, found.length - first), newLine);
    lines.forEach((line, i) => this.#fill(line, found[first + i]));
  }

  #fill(line, row) {
    COLUMNS.forEach((column, i) => {
      const cell = line.children[i];
      const text = column.text(row);
      if (column.id === "place") {
        const link = cell.firstElementChild;
        link.href = this.#href(row.place);
        setText(link, text);
      } else if (column.id === "winner") {
        const [swatch, words] = cell.children;
        swatch.hidden = !row.winner_party;
        swatch.style.backgroundColor = row.winner_party ? partyColour(row.winner_party) : "";
        setText(words, text);
      } else {
        setText(cell, text);
      }
    });
  }

  #head() {
    [...this.#panel.querySelectorAll("thead th")].forEach((cell, i) => {
      const { id, title } = COLUMNS[i];
      if (id === this.#wanted.sort) cell.setAttribute("aria-sort", this.#wanted.order === "asc" ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
      setText(cell.firstElementChild.firstElementChild, title);
      cell.firstElementChild.dataset.column = id;
      cell.className = classOf(COLUMNS[i]);
    });
  }

  #headCell() {
    const cell = make("th");
    cell.scope = "col";
    const button = make("button", "sort");
    button.type = "button";
    const arrow = make("span", "arrow");
    arrow.setAttribute("aria-hidden", "true");
    button.append(make("span"), arrow);
    button.addEventListener("click", () => this.#sortBy(COLUMNS.find(({ id }) => id === button.dataset.column)));
    cell.append(button);
    return cell;
  }

  /** The first click gives the most useful order: most first for numbers, A first for names. */
  #sortBy({ id, numeric }) {
    const first = numeric ? "desc" : "asc";
    const other = first === "asc" ? "desc" : "asc";
    this.#want({ sort: id, order: this.#wanted.sort === id && this.#wanted.order === first ? other : first, page: 1 });
  }

  #pager(pages) {
    const { page } = this.#wanted;
    const field = byId("places-page");
    field.max = pages;
    if (document.activeElement !== field || Number(field.value) > pages) field.value = page;
    setText(byId("places-pages"), count(pages));
    byId("places-prev").disabled = page <= 1;
    byId("places-next").disabled = page >= pages;
  }
}

function newLine() {
  const line = make("tr");
  line.append(...COLUMNS.map((column) => {
    const cell = make(column.id === "place" ? "th" : "td", classOf(column));
    if (column.id === "place") {
      cell.scope = "row";
      const link = make("a");
      link.dataset.route = "";
      cell.append(link);
    }
    if (column.id === "winner") cell.append(make("span", "dot"), make("span"));
    return cell;
  }));
  return line;
}

/** What is left out first where there is little room: `second`, then `later`. */
const classOf = ({ numeric, second, later }) => [numeric && "number", second && "second", later && "later"].filter(Boolean).join(" ");
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
