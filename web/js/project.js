// The plain page of a project: its views with their rows, its sources and rates. It stands at / where the project is no
// election, and at views.html.

import { json, takeToken, viewUrl } from "./api.js";
import { byId, make, setText } from "./dom.js";
import { clockTime, count, decimal, instant, plural } from "./format.js";
import { rowsTable } from "./rows.js";

const EVERY_MS = 2_000;
const ROWS = 20;
/** So few views are open from the start. */
const OPEN_MAX = 4;

/** Replaces what the page has by the project's page; `alone`: there is no other page of results. */
export function showProject({ alone = false } = {}) {
  takeToken();
  document.title = "Views – Tally";
  if (!document.querySelector('link[href="css/tools.css"]')) {
    const style = make("link");
    style.rel = "stylesheet";
    style.href = "css/tools.css";
    document.head.append(style);
  }
  document.body.replaceChildren(...frame(alone));
  const open = new Map();
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const [status, { views }] = await Promise.all([json("/api/status"), json("/api/views")]);
      health(status);
      sources(status.sources ?? []);
      list(views, open);
      await Promise.all([...open.values()].map((entry) => entry.box.open && rows(entry)));
    } catch (error) {
      byId("health").dataset.state = "lost";
      setText(byId("health-text"), error.status ? error.message : "Connection lost. Trying again…");
    }
  };
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
  refresh();
}

function frame(alone) {
  const skip = make("a", "skip", "Skip to the views");
  skip.href = "#views";
  const top = make("header", "top");
  const brand = make("a", "brand");
  brand.href = "./";
  const logo = make("img");
  Object.assign(logo, { src: "favicon.svg", alt: "", width: 34, height: 34 });
  brand.append(logo, make("span", "", "Tally"));
  const nav = make("nav", "sections");
  nav.setAttribute("aria-label", "Pages");
  for (const [name, href] of [...(alone ? [] : [["Results", "./"]]), ["Views", "views.html"], ["Console", "console.html"], ["Operations", "operations.html"]]) {
    const link = make("a", "", name);
    link.href = href;
    if (name === "Views") link.setAttribute("aria-current", "page");
    nav.append(link);
  }
  const pill = make("p", "pill");
  pill.id = "health";
  pill.dataset.state = "connecting";
  pill.setAttribute("role", "status");
  const text = make("span", "", "Connecting…");
  text.id = "health-text";
  pill.append(text);
  top.append(brand, nav, pill);
  const main = make("main");
  main.id = "views";
  main.tabIndex = -1;
  const [sourcesPanel, viewsPanel] = [make("section", "panel"), make("section", "panel")];
  const [sourcesBox, viewsBox] = [make("div", "scroll"), make("div")];
  sourcesBox.id = "sources";
  sourcesBox.tabIndex = 0;
  sourcesBox.setAttribute("role", "group");
  sourcesBox.setAttribute("aria-label", "Sources");
  viewsBox.id = "list";
  sourcesPanel.append(make("h2", "", "Sources"), sourcesBox);
  viewsPanel.append(make("h2", "", "Views"), make("p", "quiet", "Each is kept up to date as messages come in. Open one for its newest rows."), viewsBox);
  main.append(make("h1", "title", "Views and sources"), sourcesPanel, viewsPanel);
  return [skip, top, main];
}

function health(status) {
  const paused = status.paused?.[0];
  byId("health").dataset.state = paused ? "stale" : "live";
  setText(byId("health-text"), paused ? `Paused since ${clockTime(instant(paused.paused_since))}: ${paused.reason}` : status.ready ? "Live" : "Catching up");
}

function sources(list) {
  const columns = ["Source", "Topic", "Received", "Counted", "Rejected", "Waiting", "Rate"].map((name, i) => ({ name, type: i > 1 ? "Int64" : "Utf8" }));
  const lines = list.map((source) => ({ Source: source.name, Topic: source.topic, Received: count(source.received), Counted: count(source.counted),
    Rejected: count(source.rejected), Waiting: count(source.lag), Rate: `${decimal(source.rate_per_s)} a second` }));
  byId("sources").replaceChildren(lines.length ? rowsTable({ columns, rows: lines }, "Sources") : make("p", "message", "Nothing is being read."));
}

function list(views, open) {
  const names = new Set(views.map((view) => view.name));
  for (const [name, entry] of open) {
    if (names.has(name)) continue;
    entry.box.remove();
    open.delete(name);
  }
  for (const view of views) {
    let entry = open.get(view.name);
    if (!entry) {
      entry = newEntry(view);
      entry.box.open = views.length <= OPEN_MAX;
      open.set(view.name, entry);
      byId("list").append(entry.box);
    }
    const failed = view.failed ? ` — failed since ${clockTime(instant(view.failed.since))}: ${view.failed.reason}` : "";
    setText(entry.note, ` ${plural(view.rows, "row")}, changed ${clockTime(instant(view.changed_at))}${failed}`);
    entry.note.classList.toggle("bad", Boolean(view.failed));
  }
}

function newEntry(view) {
  const box = make("details");
  const head = make("summary");
  const note = make("span", "quiet");
  head.append(make("code", "", view.name), note);
  const tools = make("p", "tools");
  for (const [text, href] of [["Rows as JSON", viewUrl(view.name)], ["CSV", `/api/views/${encodeURIComponent(view.name)}.csv`], ["Plan", `/api/views/${encodeURIComponent(view.name)}/plan`],
    ["Query in the console", `console.html#${new URLSearchParams({ q: `SELECT *\nFROM ${view.name}\nLIMIT 100` })}`]]) {
    const link = make("a", "", text);
    link.href = href;
    tools.append(link);
  }
  const facts = make("p", "quiet", `Key: ${view.key?.join(", ") || "the whole row"} · mode ${view.mode} · topic ${view.topic ?? "none"}`);
  const sql = make("details");
  sql.append(make("summary", "", "SQL"), make("pre", "", view.sql ?? ""));
  const table = make("div", "scroll rows-box");
  table.tabIndex = 0;
  table.setAttribute("role", "group");
  table.setAttribute("aria-label", `Rows of ${view.name}`);
  box.append(head, facts, tools, sql, table);
  const entry = { box, note, table, name: view.name };
  box.addEventListener("toggle", () => box.open && rows(entry));
  return entry;
}

async function rows(entry) {
  try {
    const page = await json(viewUrl(entry.name, { limit: ROWS }));
    const more = page.total_rows > page.rows.length ? [make("p", "quiet", `${count(page.rows.length)} of ${count(page.total_rows)} rows`)] : [];
    entry.table.replaceChildren(rowsTable(page, `Rows of ${entry.name}`), ...more);
  } catch (error) {
    entry.table.replaceChildren(make("p", "message", error.message));
  }
}
