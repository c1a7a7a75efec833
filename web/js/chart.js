// One ECharts chart in a panel: creates it when first needed, redraws it in the present colours, follows its size.
// Knows nothing of what it shows.

import { byId, make, say } from "./dom.js";
import { lessMotion, onThemeChange, theme } from "./colours.js";

export class Chart {
  #panel;
  #box;
  #chart = null;
  #draw = null;
  #height = null;

  constructor(panelId) {
    this.#panel = byId(panelId);
    this.#box = this.#panel.querySelector(".chart");
    this.#box.setAttribute("role", "img");
    onThemeChange(() => this.#redraw());
    let width = 0;
    new ResizeObserver(() => {
      if (this.#box.clientWidth === width || this.#box.clientWidth === 0) return;
      width = this.#box.clientWidth;
      this.#redraw();
    }).observe(this.#box);
  }

  /** In place of the chart, why there is none. */
  message(text) {
    say(this.#panel, text);
  }

  /**
   * `option(colours, width)` gives the ECharts option; `label` is what a screen reader reads;
   * `height(width)` in pixels replaces the style sheet's.
   */
  show({ label, height, option }) {
    say(this.#panel, null);
    this.#box.setAttribute("aria-label", label);
    this.#draw = option;
    this.#height = height;
    this.#redraw();
  }

  #redraw() {
    if (!this.#draw || this.#box.clientWidth === 0) return;
    if (this.#height) this.#box.style.height = `${this.#height(this.#box.clientWidth)}px`;
    this.#chart ??= window.echarts.init(this.#box, null, { renderer: "canvas" });
    this.#chart.resize();
    const colours = theme();
    const common = {
      backgroundColor: "transparent",
      animation: !lessMotion(),
      animationDuration: 400,
      animationDurationUpdate: 300,
      textStyle: { color: colours.text, fontFamily: colours.font },
    };
    this.#chart.setOption({ ...common, ...this.#draw(colours, this.#box.clientWidth) });
  }
}

/** Tooltip settings; `lines(params)` gives its lines of text. DOM nodes, since the CSP blocks HTML with styles. */
export function tooltip(colours, trigger, lines) {
  return {
    trigger,
    confine: true,
    transitionDuration: 0,
    backgroundColor: colours.panel,
    borderColor: colours.line,
    textStyle: { color: colours.text },
    formatter(params) {
      const box = make("div", "tip");
      lines(Array.isArray(params) ? params[0] : params).forEach((line, i) => box.append(make(i === 0 ? "strong" : "span", "", line)));
      return box;
    },
  };
}

/** Narrower than this, names stand above their bars instead of beside them. */
const BESIDE_MIN_PX = 460;

/**
 * `items` are `{ name, value, text, colour, lines }`: horizontal bars, so that long names have room.
 * With `max` the bars are parts of a whole, which is drawn behind them.
 */
export function horizontalBars(items, { max = null, rowHeight = 56 } = {}) {
  const stacked = (width) => width < BESIDE_MIN_PX;
  const row = items.length > 6 ? 38 : rowHeight;
  const longest = (texts) => Math.max(0, ...texts.map((text) => text.length));
  const gutter = longest(items.map((item) => item.text)) * 8 + 14;
  return {
    height: (width) => Math.max(1, items.length) * (stacked(width) ? 50 : row) + 12,
    option: (colours, width) => {
      const above = stacked(width);
      const labels = above ? width - 8 : Math.round(Math.min(longest(items.map((item) => item.name)) * 7.5 + 4, 240, width * 0.36));
      return {
        grid: { left: above ? 0 : labels + 12, right: gutter, top: 6, bottom: above ? 0 : 6, outerBoundsMode: "none" },
        tooltip: tooltip(colours, "item", ({ dataIndex }) => items[dataIndex]?.lines ?? []),
        xAxis: { type: "value", min: 0, max: max ?? ((extent) => Math.max(extent.max, 1)), show: false },
        yAxis: {
          type: "category",
          inverse: true,
          z: 5,
          // The index keeps namesakes apart.
          data: items.map((_, i) => i),
          axisLine: { show: false },
          axisTick: { show: false },
          axisLabel: {
            color: colours.text, fontSize: 13, width: labels, overflow: "truncate", interval: 0,
            inside: above, align: above ? "left" : "right", margin: above ? 0 : 8,
            verticalAlign: above ? "bottom" : "middle", padding: above ? [0, 0, 12, 0] : 0,
            formatter: (i) => items[i]?.name ?? "",
          },
        },
        series: [{
          id: "bars",
          type: "bar",
          barWidth: above ? 14 : "58%",
          barMaxWidth: 40,
          showBackground: max !== null,
          backgroundStyle: { color: colours.empty, borderRadius: 4 },
          itemStyle: { borderRadius: 4 },
          label: { show: true, position: "right", color: colours.text, fontSize: 13, fontWeight: 600, formatter: ({ dataIndex }) => items[dataIndex]?.text ?? "" },
          data: items.map((item) => ({ value: item.value, itemStyle: { color: item.colour ?? colours.accent } })),
        }],
      };
    },
  };
}

/** The same as words. */
export function inWords(title, items) {
  return `${title}. ${items.map((item) => `${item.name}: ${item.text}`).join("; ")}`;
}
