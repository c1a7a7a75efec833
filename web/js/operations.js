// The operations page: what /api/status says, and what it said before as small lines.

import { json } from "./api.js";
import { byId, make, setText } from "./dom.js";
import { clockTime, count, decimal, duration, instant, number, plural } from "./format.js";
import { showOperator } from "./operator.js";

const EVERY_MS = 2_000;
/** So many answers make a line. */
const KEPT = 150;
const KEPT_MIN = 10;

const history = new Map();
let views = [];
let failures = 0;

showOperator(() => refresh());
setInterval(() => document.hidden || refresh(), EVERY_MS);
refresh();

async function refresh() {
  try {
    const [status, list] = await Promise.all([json("/api/status"), json("/api/views")]);
    failures = 0;
    views = list.views;
    show(status);
  } catch (error) {
    failures += 1;
    byId("health").dataset.state = "lost";
    setText(byId("health-text"), error.status ? error.message : `No answer (${count(failures)})`);
  }
}

function show(status) {
  const paused = status.paused ?? [];
  byId("health").dataset.state = paused.length ? "stale" : status.ready ? "live" : "connecting";
  setText(byId("health-text"), paused.length ? "Paused" : status.ready ? "Ready" : "Catching up");
  trouble(status);
  figures(status);
  sources(status.sources ?? []);
  rejects(status.sources ?? []);
  viewStates(status);
  references(status.reference_tables ?? []);
  stages(status.batches?.stages ?? {});
}

function trouble(status) {
  const lines = [
    ...(status.paused ?? []).map((pause) => [`Paused since ${clockTime(instant(pause.paused_since))}: ${pause.what}.`, `${pause.reason}${pause.ends_by_itself ? "" : " A restart is needed."}`]),
    ...(status.failed_views ?? []).map((view) => [`View ${view.view} has failed since ${clockTime(instant(view.since))}.`, `${view.file}:${view.line}: ${view.reason}`]),
    ...(status.refused_records ?? []).map((refused) => [`${plural(refused.records, "record")} refused by ${refused.topic}.`, refused.reason]),
    ...(status.sources ?? []).filter((source) => source.lost_messages > 0).map((source) => [`${plural(source.lost_messages, "message")} of ${source.topic} were gone before they could be read.`, "This is not the whole count."]),
    ...(status.sources ?? []).filter((source) => source.keys_in_two_partitions > 0).map((source) => [`${plural(source.keys_in_two_partitions, "key")} of ${source.topic} came in two partitions.`, "Key its messages by the primary key."]),
    ...(status.checkpoint?.error ? [["The newest checkpoint could not be written.", status.checkpoint.error]] : []),
    ...(status.reference_tables ?? []).filter((table) => table.error).map((table) => [`Table ${table.name} can't be read again.`, table.error]),
  ];
  const text = lines.map((line) => line.join(" ")).join("\n");
  const box = byId("trouble");
  if (box.dataset.shown === text) return;
  box.dataset.shown = text;
  box.className = lines.length ? "alerts" : "";
  box.replaceChildren(...lines.map(([head, rest]) => {
    const line = make("p");
    line.append(make("strong", "", head), ` ${rest}`);
    return line;
  }));
}

function figures(status) {
  const sum = (key) => (status.sources ?? []).reduce((total, source) => total + (number(source[key]) ?? 0), 0);
  const items = [
    ["Lag", sum("lag"), (value) => plural(value, "message")],
    ["Rate", sum("rate_per_s"), (value) => `${count(value)} a second`],
    ["Micro-batch, newest", number(status.batches?.last_ms) ?? 0, (value) => `${decimal(value)} ms`],
    ["Micro-batch, mean", number(status.batches?.mean_ms) ?? 0, (value) => `${decimal(value)} ms`],
    ["State", number(status.state_bytes) ?? 0, bytes],
    ["Epoch", number(status.epoch) ?? 0, count],
    ["Running for", number(status.uptime_s) ?? 0, duration],
  ];
  const age = number(status.checkpoint?.age_s);
  if (age !== null) items.push(["Newest checkpoint", age, (value) => `${duration(value)} old`]);
  byId("figures").replaceChildren(...items.map(([name, value, format]) => {
    const seen = history.get(name) ?? [];
    seen.push(value);
    if (seen.length > KEPT) seen.shift();
    history.set(name, seen);
    const figure = make("div", "figure");
    figure.append(make("span", "quiet", name), make("strong", "", format(value)));
    if (name !== "Epoch" && name !== "Running for") figure.append(line(seen));
    return figure;
  }));
}

/** A small line of the newest values. */
function line(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  // Few values are drawn wide, so that the line is one from the start.
  const width = Math.max(KEPT_MIN, values.length);
  svg.setAttribute("viewBox", `0 0 ${width - 1} 30`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1e-9);
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  shape.setAttribute("points", values.map((value, i) => `${width - values.length + i},${(29 - (27 * value) / most).toFixed(1)}`).join(" "));
  svg.append(shape);
  return svg;
}

function stages(by) {
  byId("stages-panel").hidden = Object.keys(by).length === 0;
  const lines = Object.entries(by).sort((a, b) => b[1].total_s - a[1].total_s).map(([stage, { runs, total_s: total, last_ms: last, max_ms: max }]) =>
    [stage.replaceAll("_", " "), count(runs), decimal(total), runs > 0 ? decimal((1000 * total) / runs) : "–", decimal(last), decimal(max)]);
  table("stages", ["Stage", "Runs", "Seconds in all", "Mean ms", "Newest ms", "Longest ms"], lines);
}

function sources(list) {
  table("sources", ["Source", "Topic", "Received", "Counted", "Rejected", "Lag", "Rate", "Watermark", "Held by"], list.map((source) => [
    source.name, source.topic, count(source.received), count(source.counted), count(source.rejected),
    count(source.lag) + (source.lag_to_high_watermark > source.lag ? ` (${count(source.lag_to_high_watermark)} with open transactions)` : ""),
    `${decimal(source.rate_per_s)} /s`, clockTime(instant(source.watermark)),
    source.watermark_held_by === null || source.watermark_held_by === undefined ? "–" : `partition ${source.watermark_held_by}`,
  ]));
}

function rejects(list) {
  const lines = list.flatMap((source) => [
    ...Object.entries(source.rejected_by_reason ?? {}).map(([reason, n]) => [source.name, "rejected", reason, count(n)]),
    ...Object.entries(source.late_by_view ?? {}).map(([view, n]) => [source.name, "late for a view", view, count(n)]),
    ...Object.entries(source.errors_by_view ?? {}).map(([view, n]) => [source.name, "failed in a view", view, count(n)]),
    ...Object.entries(source.unmatched_by_view ?? {}).flatMap(([view, by]) => Object.entries(by).map(([join, n]) => [source.name, `without a row of ${join}`, view, count(n)])),
  ]);
  table("rejects", ["Source", "What", "Rule or view", "Messages"], lines, "Nothing has been rejected or left out.");
  const samples = list.flatMap((source) => (source.reject_samples ?? []).map((sample) =>
    [sample.view ? `${sample.rule} in ${sample.view}` : sample.rule, sample.reason, `${sample.partition}/${sample.offset}`, clockTime(instant(sample.at)), sample.value ?? "no value"]));
  byId("samples-box").hidden = samples.length === 0;
  table("samples", ["Rule", "Reason", "Partition/offset", "At", "Message"], samples);
}

function viewStates(status) {
  const failed = new Map((status.failed_views ?? []).map((view) => [view.view, view]));
  const by = status.state_bytes_by_view ?? {};
  const seconds = status.seconds_by_view ?? {};
  table("state", ["View", "Rows", "State", "Work", "Epoch", "Changed", "Topic", "Access", "Health"], views.map((view) => [
    view.name, count(view.rows), bytes(by[view.name]), view.name in seconds ? `${decimal(seconds[view.name])} s` : "–", count(view.epoch), clockTime(instant(view.changed_at)), view.topic ?? "–",
    view.access ?? "–", failed.has(view.name) ? `failed: ${failed.get(view.name).reason}` : "up to date",
  ]));
}

function references(list) {
  table("tables", ["Table", "Rows", "Held", "Read", "Columns held"], list.map((reference) => [
    reference.name, count(reference.rows), bytes(reference.bytes), `${duration(reference.age_s)} ago`, (reference.columns ?? []).join(", "),
  ]), "No table of Postgres is read.");
}

function table(id, columns, lines, none = "None.") {
  const box = byId(id);
  if (lines.length === 0) {
    box.replaceChildren(make("p", "message", none));
    return;
  }
  const numeric = columns.map((_, i) => lines.some((cells) => /^\d/.test(cells[i])) && lines.every((cells) => /^[\d,.–]+( \S+){0,2}$/.test(cells[i])));
  const element = make("table", "rows");
  const row = (tag, cells) => {
    const line = make("tr");
    cells.forEach((cell, i) => {
      const box = make(tag, numeric[i] ? "number" : "cell-wrap", cell);
      if (tag === "th") box.scope = "col";
      line.append(box);
    });
    return line;
  };
  const [head, body] = [make("thead"), make("tbody")];
  head.append(row("th", columns));
  body.append(...lines.map((cells) => row("td", cells)));
  element.append(head, body);
  box.replaceChildren(element);
}

function bytes(value) {
  const n = number(value);
  if (n === null) return "–";
  const unit = n >= 2 ** 30 ? ["GiB", 2 ** 30] : n >= 2 ** 20 ? ["MiB", 2 ** 20] : ["KiB", 2 ** 10];
  return `${decimal(n / unit[1])} ${unit[0]}`;
}
