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
   * `option(colours, width, height)` gives the ECharts option; `label` is what a screen reader reads;
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
    this.#chart.setOption({ ...common, ...this.#draw(colours, this.#box.clientWidth, this.#box.clientHeight) });
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
