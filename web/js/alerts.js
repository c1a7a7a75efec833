// What the reader must know before believing the figures: that counting is paused, or that a panel shows old rows.

import { byId, make } from "./dom.js";
import { clockTime, instant, plural } from "./format.js";

export function renderAlerts(answer) {
  const { paused = [], failed_views: failed = [], refused_records: refused = [] } = answer?.data ?? {};
  const lines = [
    ...paused.map((pause) => [
      `Counting has been paused since ${clockTime(instant(pause.paused_since))}.`,
      `${sentence(pause.what)}: ${pause.reason}. ${pause.ends_by_itself ? "It goes on by itself." : "A restart is needed."}`,
    ]),
    ...failed.map((view) => [
      `“${view.view}” shows its rows of ${clockTime(instant(view.since))}.`,
      `Its query fails on the present ones: ${view.reason} (${view.file}, line ${view.line}). All others go on.`,
    ]),
    ...refused.map((topic) => [
      `${plural(topic.records, "record")} could not be written to ${topic.topic}.`,
      `${sentence(topic.reason)}.`,
    ]),
  ];
  const box = byId("alerts");
  const texts = lines.map((line) => line.join(" "));
  if (texts.join("\n") === box.dataset.shown) return;
  box.dataset.shown = texts.join("\n");
  box.hidden = lines.length === 0;
  box.replaceChildren(...lines.map(([head, rest]) => {
    const line = make("p");
    line.append(make("strong", "", head), ` ${rest}`);
    return line;
  }));
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
