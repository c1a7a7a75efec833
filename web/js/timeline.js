// Each candidate's share through the night, as lines that end in name and share.

import { partyColour } from "./colours.js";
import { Chart, tooltip } from "./chart.js";
import { clockTime, count, minuteTime, number, percent } from "./format.js";

/** Below this span the axis shows seconds. */
const SHORT_MS = 4 * 60_000;
/** Room for the names at the lines' ends. */
const LABEL_PX = 168;
const NARROW_PX = 560;
const TOP_PX = 12;
const BOTTOM_PX = 28;
/** Least distance of two names. */
const LINE_PX = 16;

export class Timeline {
  #chart = new Chart("timeline");

  /** `releases` are the history of vote_shares, `candidates` as the ranked list has them. */
  render(releases, candidates) {
    const counted = releases.map(({ at, rows }) => [at, new Map(rows.map((row) => [row.candidate_id, row]))])
      .filter(([, rows]) => [...rows.values()].some((row) => number(row.share_pct) !== null));
    const lines = candidates.map((candidate) => ({ ...candidate,
      points: counted.map(([at, rows]) => [at, number(rows.get(candidate.id)?.share_pct) ?? 0, rows.get(candidate.id)?.votes ?? 0]) }));
    const points = Math.max(0, ...lines.map((line) => line.points.length));
    this.#chart.message(points < 2 ? "The lines begin with the first ballots." : null);
    if (points < 2) return;
    const from = Math.min(...lines.map((line) => line.points[0][0]));
    const to = Math.max(...lines.map((line) => line.points.at(-1)[0]));
    const label = `Share of the vote from ${minuteTime(from)} to ${minuteTime(to)}. ${lines.map((line) =>
      `${line.name} from ${percent(line.points[0][1])} to ${percent(line.points.at(-1)[1])}`).join("; ")}.`;
    this.#chart.show({ label, option: (colours, width, height) => option(lines, from, to, colours, { width, height }) });
  }
}

function option(lines, from, to, colours, { width, height }) {
  const clock = to - from < SHORT_MS ? clockTime : minuteTime;
  const shares = lines.flatMap((line) => line.points.map((point) => point[1]));
  const [least, most] = [Math.floor(Math.min(...shares) / 10) * 10, Math.min(100, Math.ceil((Math.max(...shares) + 1) / 10) * 10)];
  const narrow = width < NARROW_PX;
  const shifts = apart(lines.map((line) => ((most - line.points.at(-1)[1]) / (most - least)) * (height - TOP_PX - BOTTOM_PX)));
  const steps = Math.max(2, Math.floor((width - LABEL_PX) / 110));
  return {
    grid: { left: 42, right: narrow ? 64 : LABEL_PX, top: TOP_PX, bottom: BOTTOM_PX, outerBoundsMode: "none" },
    tooltip: tooltip(colours, "axis", ({ axisValue }) => atTime(lines, axisValue)),
    xAxis: {
      type: "value",
      min: from,
      max: to,
      interval: Math.max(1, (to - from) / steps),
      axisLine: { lineStyle: { color: colours.line } },
      axisTick: { show: false },
      splitLine: { show: false },
      axisLabel: { color: colours.quiet, hideOverlap: true, showMaxLabel: true, formatter: (at) => clock(at) },
    },
    yAxis: {
      type: "value",
      min: least,
      max: most,
      splitNumber: 4,
      splitLine: { lineStyle: { color: colours.line } },
      axisLabel: { color: colours.quiet, formatter: (share) => `${share} %` },
    },
    series: lines.map((line, i) => ({
      id: String(line.id),
      name: line.name,
      type: "line",
      data: line.points,
      showSymbol: false,
      symbol: "circle",
      lineStyle: { color: partyColour(line.party), width: 3 },
      itemStyle: { color: partyColour(line.party) },
      endLabel: { show: true, color: colours.text, fontSize: 13, distance: 8, offset: [0, shifts[i]],
        formatter: ({ value }) => (narrow ? percent(value[1]) : `${surname(line.name)} ${percent(value[1])}`) },
      emphasis: { disabled: true },
    })),
  };
}

/** How far each label must move so that none covers another; `tops` are where they would be. */
function apart(tops) {
  const order = tops.map((_, i) => i).sort((a, b) => tops[a] - tops[b]);
  const moved = [...tops];
  order.forEach((i, nth) => { if (nth > 0) moved[i] = Math.max(moved[i], moved[order[nth - 1]] + LINE_PX); });
  return moved.map((top, i) => top - tops[i]);
}

const surname = (name) => name.split(" ").at(-1);

/** What a tooltip says: the time, and everyone's share then. */
function atTime(lines, at) {
  const nearest = (line) => line.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
  const shares = lines.map((line) => ({ line, point: nearest(line) })).sort((a, b) => b.point[1] - a.point[1]);
  return [clockTime(shares[0].point[0]), ...shares.map(({ line, point }) => `${line.name} ${percent(point[1])} (${count(point[2])})`)];
}
