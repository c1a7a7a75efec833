// Who has voted and when: votes by minute, turnout by age band and by gender.

import { Chart, horizontalBars, inWords, tooltip } from "./chart.js";
import { byId, complaint, setText } from "./dom.js";
import { compact, count, dayMinuteTime, instant, minuteTime, name, number, percent, percentExact, plural } from "./format.js";

const MINUTE_MS = 60_000;
/** A longer silence is left as a straight line, not filled with empty minutes. */
const FILL_MINUTES_MAX = 2880;

export class Timeline {
  #chart = new Chart("timeline");

  /** `status` tells how many votes came too late to be in the chart. */
  render(answer, status) {
    const late = (status?.data?.sources ?? []).reduce((sum, source) => sum + (source.late_by_view?.votes_over_time ?? 0), 0);
    const note = byId("timeline-late");
    note.hidden = late === 0;
    setText(note, late === 0 ? "" : `${plural(late, "vote")} came too late for this chart. Every other figure counts them.`);
    const points = answer?.data ? perMinute(answer.data.rows) : [];
    const problem = complaint(answer) ?? (points.length === 0 ? "No votes yet." : null);
    this.#chart.message(problem);
    if (problem) return;
    const busiest = points.reduce((a, b) => (b[1] > a[1] ? b : a));
    const label = `Votes over time, from ${dayMinuteTime(points[0][0])} to ${dayMinuteTime(points.at(-1)[0])}. `
      + `Busiest minute ${dayMinuteTime(busiest[0])} with ${plural(busiest[1], "vote")}.`;
    this.#chart.show({ label, option: (colours, width) => area(points, colours, width) });
  }
}

/** `[ms, votes]` in order of time, minutes without votes as 0. */
function perMinute(rows) {
  const known = rows
    .map((row) => [instant(row.minute), number(row.votes) ?? 0])
    .filter(([at]) => at !== null)
    .sort((a, b) => a[0] - b[0]);
  if (known.length === 0 || known.at(-1)[0] - known[0][0] > FILL_MINUTES_MAX * MINUTE_MS) return known;
  const byMinute = new Map(known);
  const points = [];
  for (let at = known[0][0]; at <= known.at(-1)[0]; at += MINUTE_MS) points.push([at, byMinute.get(at) ?? 0]);
  return points;
}

function area(points, colours, width) {
  return {
    grid: { left: 48, right: 16, top: 16, bottom: 28, outerBoundsMode: "none" },
    tooltip: tooltip(colours, "axis", ({ value }) => [dayMinuteTime(value[0]), plural(value[1], "vote")]),
    xAxis: {
      type: "time",
      minInterval: MINUTE_MS,
      splitNumber: Math.max(2, Math.round(width / 130)),
      axisLine: { lineStyle: { color: colours.line } },
      axisTick: { lineStyle: { color: colours.line } },
      axisLabel: { color: colours.quiet, hideOverlap: true, formatter: (at) => minuteTime(at) },
    },
    yAxis: {
      type: "value",
      min: 0,
      minInterval: 1,
      splitNumber: 4,
      splitLine: { lineStyle: { color: colours.line } },
      axisLabel: { color: colours.quiet, formatter: (votes) => compact(votes) },
    },
    series: [{
      id: "votes",
      type: "line",
      data: points,
      showSymbol: points.length < 20,
      symbolSize: 7,
      lineStyle: { color: colours.accent, width: 2 },
      itemStyle: { color: colours.accent },
      areaStyle: { color: colours.accent, opacity: 0.16 },
    }],
  };
}

/** Turnout of each value of `column`, of 100 %. */
export class TurnoutBars {
  #chart;
  #column;
  #title;

  constructor(panelId, column, title) {
    this.#chart = new Chart(panelId);
    this.#column = column;
    this.#title = title;
  }

  render(answer) {
    const problem = complaint(answer) ?? (answer.data.rows.length === 0 ? "No voters are registered." : null);
    this.#chart.message(problem);
    if (problem) return;
    const items = [...answer.data.rows]
      .sort((a, b) => name(a[this.#column], "\uffff").localeCompare(name(b[this.#column], "\uffff")))
      .map((row) => ({ name: label(row[this.#column]), value: number(row.turnout_pct) ?? 0, text: percent(row.turnout_pct),
        lines: [label(row[this.#column]), `${count(row.count)} of ${count(row.registered)} have voted`, percentExact(row.turnout_pct)] }));
    this.#chart.show({ label: inWords(this.#title, items), ...horizontalBars(items, { max: 100, rowHeight: 42 }) });
  }
}

/** "female" reads better as "Female". */
function label(value) {
  const text = name(value);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
