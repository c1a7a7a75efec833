// One ECharts chart in a panel: creates it when first needed, redraws it in the present colours, follows its size.
// Knows nothing of what it shows.

import { byId, make, say } from "./dom.js";
import { lessMotion, onThemeChange, theme } from "./colours.js";

export class Chart {
  #panel;
  #box;
  #chart = null;
  #draw = null;

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
   * `height` in pixels replaces the style sheet's.
   */
  show({ label, height, option }) {
    say(this.#panel, null);
    this.#box.setAttribute("aria-label", label);
    if (height) this.#box.style.height = `${height}px`;
    this.#draw = option;
    this.#redraw();
  }

  #redraw() {
    if (!this.#draw || this.#box.clientWidth === 0) return;
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
    this.#chart.setOption({ ...common, ...this.#draw(colours, this.#box.clientWidth) }, { replaceMerge: ["series"] });
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

/** `items` are `{ name, value, text, colour, lines }`: horizontal bars, so that long names have room. */
export function horizontalBars(items, { max = null, barHeight = 38 } = {}) {
  return {
    height: Math.max(1, items.length) * barHeight + 16,
    option: (colours, width) => {
      const labels = Math.min(190, Math.round(width * 0.34));
      return {
        grid: { left: labels + 12, right: 76, top: 6, bottom: 6, outerBoundsMode: "none" },
        tooltip: tooltip(colours, "item", ({ dataIndex }) => items[dataIndex]?.lines ?? []),
        xAxis: { type: "value", min: 0, max: max ?? ((extent) => Math.max(extent.max, 1)), show: false },
        yAxis: {
          type: "category",
          inverse: true,
          // The index keeps namesakes apart.
          data: items.map((_, i) => i),
          axisLine: { show: false },
          axisTick: { show: false },
          axisLabel: { color: colours.text, fontSize: 13, width: labels, overflow: "truncate", interval: 0, formatter: (i) => items[i]?.name ?? "" },
        },
        series: [{
          type: "bar",
          barWidth: "58%",
          showBackground: true,
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
