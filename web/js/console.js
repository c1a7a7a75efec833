// The console: an editor with the tables beside it, the answer as table or chart, and each view's SQL, plan and rows.

import { ask, json, token, viewUrl } from "./api.js";
import { Chart, tooltip } from "./chart.js";
import { palette } from "./colours.js";
import { byId, make, setText } from "./dom.js";
import { Editor } from "./editor.js";
import { count, number, plural } from "./format.js";
import { showOperator } from "./operator.js";
import { chartable, csv, download, rowsTable, valueText } from "./rows.js";

const HISTORY_KEY = "tally.history";
const HISTORY_MAX = 50;
/** Longer than the server lets a query run. */
const QUERY_TIMEOUT_MS = 120_000;
const LIVE_MS = 2_000;
const LIVE_ROWS = 50;
const CHART_ROWS_MAX = 500;
const COLUMNS_SQL = `SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns
WHERE table_schema <> 'information_schema' ORDER BY 1, 2, ordinal_position`;
const EXAMPLES = [
  ["Result", "SELECT candidate_name, party_affiliation, votes, share_pct\nFROM standings\nORDER BY votes DESC"],
  ["Closest places", "SELECT place, winner_name, margin_votes, margin_points\nFROM place_overview\nWHERE state = 'declared'\nORDER BY margin_points\nLIMIT 10"],
  ["Gains, by party", "SELECT winner_party, COUNT(*) AS places, COUNT(*) FILTER (WHERE gain) AS gains\nFROM place_overview\nWHERE state = 'declared'\nGROUP BY winner_party\nORDER BY places DESC"],
  ["Votes in each minute", "SELECT minute, votes, SUM(votes) OVER (ORDER BY minute) AS so_far\nFROM votes_over_time\nORDER BY minute"],
  ["Views and their columns", "SELECT table_name, column_name, data_type\nFROM information_schema.columns\nORDER BY table_name, ordinal_position"],
  ["The stream itself (token)", "SELECT COUNT(*) AS ballots, MIN(voting_time) AS first, MAX(voting_time) AS last\nFROM votes"],
];

const editor = new Editor({ onRun: () => run(), onEdit: () => remember() });
const chart = new Chart("chart");
let answer = null;
let asked = "";
let running = null;
let live = null;

showOperator(loadSchema);
fillExamples();
fillHistory();
connect();
editor.text = fromAddress() ?? EXAMPLES[0][1];
loadSchema();
if (fromAddress()) run();

function connect() {
  byId("run").addEventListener("click", () => run());
  byId("explain").addEventListener("click", () => run(`EXPLAIN ${editor.wanted}`));
  byId("link").addEventListener("click", share);
  byId("csv").addEventListener("click", () => download(csv(answer), "text/csv", "rows.csv"));
  byId("arrow").addEventListener("click", () => downloadAs("application/vnd.apache.arrow.stream", "rows.arrows"));
  byId("parquet").addEventListener("click", () => downloadAs("application/vnd.apache.parquet", "rows.parquet"));
  byId("as-table").addEventListener("click", () => show("table"));
  byId("as-chart").addEventListener("click", () => show("chart"));
  byId("view-close").addEventListener("click", closeView);
  for (const id of ["examples", "history"]) {
    byId(id).addEventListener("change", (event) => {
      if (event.target.value) editor.text = event.target.value;
      event.target.value = "";
      editor.focus();
    });
  }
}

async function run(text = editor.wanted) {
  if (!text.trim()) return;
  running?.abort();
  running = new AbortController();
  const mine = running;
  const timeout = setTimeout(() => mine.abort(), QUERY_TIMEOUT_MS);
  asked = text;
  keep(text);
  editor.clear();
  byId("run").disabled = true;
  setText(byId("result-note"), "Running…");
  const begun = performance.now();
  try {
    answer = await json("/api/sql", { body: { query: text }, signal: mine.signal });
    const ms = Math.round(performance.now() - begun);
    setText(byId("result-note"), `${plural(answer.rows.length, "row")} in ${count(ms)} ms${answer.truncated ? ", cut off: there are more" : ""}`);
    show(byId("as-chart").getAttribute("aria-pressed") === "true" ? "chart" : "table");
  } catch (error) {
    if (mine !== running) return;
    answer = null;
    setText(byId("result-note"), "");
    byId("rows").replaceChildren(make("p", "message", "The query failed."));
    byId("chart").hidden = true;
    byId("rows").hidden = false;
    const hint = error.status === 401 && !token() ? "\n\nGive the operator's token above; it is printed when the server starts." : "";
    const aborted = error.name === "AbortError" || error.name === "TimeoutError";
    editor.mark({ message: (aborted ? "The query was given up." : error.message) + hint, line: error.line, column: error.column, within: text });
  } finally {
    clearTimeout(timeout);
    if (mine === running) byId("run").disabled = false;
  }
  for (const id of ["csv", "arrow", "parquet"]) byId(id).disabled = answer === null;
}

function show(how) {
  byId("as-table").setAttribute("aria-pressed", String(how === "table"));
  byId("as-chart").setAttribute("aria-pressed", String(how === "chart"));
  byId("rows").hidden = how !== "table";
  byId("chart").hidden = how !== "chart";
  if (!answer) return;
  const plan = answer.columns.some(({ name }) => name === "plan");
  if (how === "table" && plan) byId("rows").replaceChildren(...answer.rows.map((row) => make("pre", "", valueText(row.plan))));
  else if (how === "table") byId("rows").replaceChildren(rowsTable(answer, "Rows of the query"));
  else drawChart();
}

function drawChart() {
  const found = chartable(answer);
  chart.message(found ? null : "A chart needs a column of numbers.");
  if (!found) return;
  const rows = answer.rows.slice(0, CHART_ROWS_MAX);
  const labels = rows.map((row, i) => (found.label ? valueText(row[found.label.name]) : String(i + 1)));
  const time = /timestamp|date/i.test(found.label?.type ?? "");
  const colours_ = palette();
  chart.show({
    label: `${found.numbers.map(({ name }) => name).join(", ")} by ${found.label?.name ?? "row"}, ${plural(rows.length, "row")}`,
    option: (colours) => ({
      grid: { left: 8, right: 16, top: 36, bottom: 8, containLabel: true },
      legend: { top: 0, textStyle: { color: colours.text } },
      tooltip: tooltip(colours, "axis", (param) => [labels[param.dataIndex], ...found.numbers.map(({ name }) => `${name} ${valueText(rows[param.dataIndex][name])}`)]),
      xAxis: { type: "category", data: labels, axisLabel: { color: colours.quiet, hideOverlap: true }, axisLine: { lineStyle: { color: colours.line } } },
      yAxis: { type: "value", splitLine: { lineStyle: { color: colours.line } }, axisLabel: { color: colours.quiet } },
      series: found.numbers.map(({ name }, i) => ({ id: name, name, type: time ? "line" : "bar", showSymbol: false,
        itemStyle: { color: colours_[i % colours_.length] }, data: rows.map((row) => number(row[name])) })),
    }),
  });
}

async function downloadAs(accept, name) {
  try {
    const response = await ask("/api/sql", { body: { query: asked }, accept });
    const type = response.headers.get("Content-Type") ?? "";
    if (type !== accept) throw new Error(`The server answered with ${type || "no type"} instead of ${accept}.`);
    download(await response.blob(), type, name);
  } catch (error) {
    editor.mark({ message: error.message });
  }
}

async function share() {
  const url = new URL(location.href);
  url.hash = new URLSearchParams({ q: editor.text }).toString();
  history.replaceState(null, "", url);
  const button = byId("link");
  try {
    await navigator.clipboard.writeText(url.href);
    setText(button, "Copied");
  } catch {
    setText(button, "It is in the address");
  }
  setTimeout(() => setText(button, "Share"), 2000);
}

function fromAddress() {
  return new URLSearchParams(location.hash.slice(1)).get("q");
}

function fillExamples() {
  for (const [name, query] of EXAMPLES) byId("examples").append(option(name, query));
}

function option(name, value) {
  const element = make("option", "", name);
  element.value = value;
  return element;
}

function past() {
  try {
    const stored = JSON.parse(localStorage.getItem(HISTORY_KEY) ?? "[]");
    return Array.isArray(stored) ? stored.filter((query) => typeof query === "string") : [];
  } catch {
    return [];
  }
}

function keep(query) {
  try {
    localStorage.setItem(HISTORY_KEY, JSON.stringify([query, ...past().filter((before) => before !== query)].slice(0, HISTORY_MAX)));
  } catch {
    // Storage may be forbidden: nothing is remembered then.
  }
  fillHistory();
}

function fillHistory() {
  byId("history").replaceChildren(option("History…", ""), ...past().map((query) => option(query.replaceAll(/\s+/g, " ").slice(0, 70), query)));
}

/** What is written is not lost by a look at another page. */
function remember() {
  if (fromAddress() !== null) history.replaceState(null, "", location.pathname + location.search);
}

async function loadSchema() {
  const message = byId("schema-message");
  try {
    const { views } = await json("/api/views");
    const tables = views.map((view) => ({ name: view.name, kind: "view", columns: view.columns, view }));
    const known = new Set(tables.map((table) => table.name));
    let refused = "";
    try {
      const { rows } = await json("/api/sql", { body: { query: COLUMNS_SQL } });
      for (const row of rows) {
        const name = row.table_schema === "public" ? row.table_name : `${row.table_schema}.${row.table_name}`;
        if (known.has(name)) continue;
        let table = tables.find((table) => table.name === name);
        if (!table) tables.push((table = { name, kind: "table", columns: [] }));
        table.columns.push({ name: row.column_name, type: row.data_type });
      }
    } catch (error) {
      refused = token() ? error.message : "With the operator's token queries can be run, over the tables below the views as well.";
    }
    message.hidden = !refused;
    setText(message, refused);
    byId("schema").replaceChildren(...tables.map(schemaEntry));
  } catch (error) {
    message.hidden = false;
    setText(message, `The tables can't be listed: ${error.message}`);
  }
}

function schemaEntry(table) {
  const box = make("details", "table");
  const head = make("summary");
  head.append(make("code", "", table.name), make("span", "quiet", table.view ? ` ${count(table.view.rows)}` : " table"));
  box.append(head);
  const tools = make("p", "tools");
  tools.append(action("Query", () => {
    editor.text = `SELECT *\nFROM ${table.name}\nLIMIT 100`;
    run();
  }));
  if (table.view) tools.append(action("Plan and rows", () => openView(table.view)));
  const list = make("ul");
  for (const column of table.columns) {
    const item = make("li");
    const button = action(column.name, () => editor.insert(column.name));
    button.className = "column";
    item.append(button, make("span", "quiet", column.type));
    list.append(item);
  }
  box.append(tools, list);
  return box;
}

function action(text, act) {
  const button = make("button", "", text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

async function openView(view) {
  closeView();
  byId("view").hidden = false;
  setText(byId("view-title"), view.name);
  const facts = [["Key", view.key?.join(", ") || "whole rows"], ["Mode", view.mode], ["Topic", view.topic ?? "none"], ["Read by", view.access ?? "everyone"]];
  byId("view-facts").replaceChildren(...facts.map(([term, value]) => {
    const line = make("div");
    line.append(make("dt", "", term), make("dd", "", value));
    return line;
  }));
  byId("view-sql-box").hidden = !view.sql;
  setText(byId("view-sql"), view.sql ?? "");
  byId("view").scrollIntoView({ block: "nearest" });
  const rows = async () => {
    try {
      const page = await json(viewUrl(view.name, { limit: LIVE_ROWS }));
      byId("view-rows").replaceChildren(rowsTable(page, `Rows of ${view.name}`));
    } catch (error) {
      byId("view-rows").replaceChildren(make("p", "message", error.message));
    }
  };
  live = setInterval(() => document.hidden || rows(), LIVE_MS);
  rows();
  try {
    setText(byId("view-plan"), await (await ask(`/api/views/${encodeURIComponent(view.name)}/plan`, { accept: "text/plain" })).text());
  } catch (error) {
    setText(byId("view-plan"), error.message);
  }
}

function closeView() {
  clearInterval(live);
  byId("view").hidden = true;
}
