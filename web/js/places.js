// The table of turnout by place. The server sorts and cuts it into pages; this keeps what is wanted and shows it.

import { byId, complaint, make, resize, say, setMeter, setText } from "./dom.js";
import { count, decimal, name, number, percentExact } from "./format.js";
import { viewUrl } from "./feed.js";

export const PLACES = "places";

/** Headings of the columns we know; an edited view may have others. */
const HEADINGS = { state: "County", city: "City", count: "Voted", registered: "Registered", turnout_pct: "Turnout" };
const NUMERIC = /^(u?int|float|decimal|double|bigint|smallint|real|numeric)/i;

export class Places {
  #feed;
  #panel = byId("places");
  #wanted = { view: "turnout_by_location", sort: "count", order: "desc", size: 10, page: 1 };
  #pages = 1;

  constructor(feed) {
    this.#feed = feed;
    for (const choice of this.#panel.querySelectorAll("input[name=place]")) {
      if (choice.checked) this.#wanted.view = choice.value;
      choice.addEventListener("change", () => this.#want({ view: choice.value, sort: "count", order: "desc", page: 1 }));
    }
    const size = byId("places-size");
    this.#wanted.size = Number(size.value);
    size.addEventListener("change", () => this.#want({ size: Number(size.value), page: 1 }));
    byId("places-prev").addEventListener("click", () => this.#want({ page: this.#wanted.page - 1 }));
    byId("places-next").addEventListener("click", () => this.#want({ page: this.#wanted.page + 1 }));
    byId("places-page").addEventListener("change", (event) => this.#want({ page: Math.round(Number(event.target.value)) || 1 }));
    this.#panel.querySelector(".pager").addEventListener("submit", (event) => event.preventDefault());
    this.#watch();
  }

  #watch() {
    const { view, sort, order, size, page } = this.#wanted;
    this.#feed.watch(PLACES, viewUrl(view, { sort, order, limit: size, offset: (page - 1) * size }));
  }

  #want(change) {
    Object.assign(this.#wanted, change);
    this.#wanted.page = Math.min(Math.max(1, this.#wanted.page), Math.max(this.#pages, 1));
    this.#watch();
    this.#feed.refresh();
  }

  render(answer) {
    if (answer?.problem?.status === 400 && this.#wanted.sort !== null) {
      this.#want({ sort: null, order: null, page: 1 }); // an edited view may lack the column
      return;
    }
    const problem = complaint(answer);
    say(this.#panel, problem ?? (answer.data.total_rows === 0 ? "No voters are registered." : null));
    if (problem) return;
    const { columns, rows, total_rows: total } = answer.data;
    this.#pages = Math.max(1, Math.ceil(total / this.#wanted.size));
    this.#showPager();
    if (this.#wanted.page > this.#pages) {
      this.#want({ page: this.#pages }); // the view has shrunk
      return;
    }
    this.#showHead(columns);
    this.#showRows(columns, rows);
  }

  #showPager() {
    const { page } = this.#wanted;
    const field = byId("places-page");
    field.max = this.#pages;
    if (document.activeElement !== field || Number(field.value) > this.#pages) field.value = page;
    setText(byId("places-pages"), count(this.#pages));
    byId("places-prev").disabled = page <= 1;
    byId("places-next").disabled = page >= this.#pages;
  }

  #showHead(columns) {
    const cells = resize(this.#panel.querySelector("thead tr"), columns.length, () => this.#headCell());
    columns.forEach((column, i) => {
      const cell = cells[i];
      const button = cell.firstElementChild;
      const sorted = this.#wanted.sort === column.name;
      cell.className = classOf(column, i);
      if (sorted) cell.setAttribute("aria-sort", this.#wanted.order === "asc" ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
      button.dataset.column = column.name;
      button.dataset.numeric = isNumeric(column);
      setText(button.firstElementChild, HEADINGS[column.name] ?? pretty(column.name));
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
    button.addEventListener("click", () => this.#sortBy(button.dataset));
    cell.append(button);
    return cell;
  }

  /** The first click gives the most useful order: most first for numbers, A first for names. */
  #sortBy({ column, numeric }) {
    const first = numeric === "true" ? "desc" : "asc";
    const other = first === "asc" ? "desc" : "asc";
    const order = this.#wanted.sort === column && this.#wanted.order === first ? other : first;
    this.#want({ sort: column, order, page: 1 });
  }

  #showRows(columns, rows) {
    const body = this.#panel.querySelector("tbody");
    resize(body, rows.length, () => make("tr")).forEach((line, r) => {
      if (line.children.length !== columns.length) line.replaceChildren(...columns.map((_, i) => bodyCell(i)));
      columns.forEach((column, i) => fillCell(line.children[i], column, i, rows[r][column.name]));
      const others = columns.filter((column, i) => i > 0 && !isNumeric(column)).map((column) => name(rows[r][column.name]));
      setText(line.firstElementChild.lastElementChild, others.join(", "));
    });
  }
}

function bodyCell(i) {
  const cell = make(i === 0 ? "th" : "td");
  if (i === 0) cell.scope = "row";
  cell.append(make("span"), make("span", "meter"));
  if (i === 0) cell.append(make("span", "under")); // on a phone, the row's other names
  return cell;
}

function fillCell(cell, column, i, value) {
  const [text, meter] = cell.children;
  cell.className = classOf(column, i);
  const share = column.name === "turnout_pct";
  setText(text, share ? percentExact(value) : isNumeric(column) ? decimal(value) : name(value));
  meter.hidden = !share;
  if (share) setMeter(meter, number(value));
}

const isNumeric = (column) => NUMERIC.test(column.type);
const pretty = (column) => column.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

function classOf(column, i) {
  if (isNumeric(column)) return column.name === "turnout_pct" ? "number share" : "number";
  return i > 0 ? "second" : "";
}
