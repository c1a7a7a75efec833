// Calm movement: numbers that run to their new value, rows that slide to their new place. None for readers who wish
// for less motion, or in a tab that nobody sees.

import { lessMotion } from "./colours.js";
import { setText } from "./dom.js";

const COUNT_MS = 700;
const SLIDE_MS = 600;

/** Element → the number it shows and the frame that will show the next. */
const shown = new WeakMap();

const still = () => lessMotion() || document.hidden;

/** Lets the number in `element` run to `value`, written by `format`. */
export function countTo(element, value, format) {
  const before = shown.get(element);
  if (before?.frame) cancelAnimationFrame(before.frame);
  const from = before?.now ?? null;
  if (value === null || from === null || from === value || still()) {
    shown.set(element, { now: value });
    setText(element, format(value));
    return;
  }
  const state = { now: from };
  shown.set(element, state);
  const begun = performance.now();
  const step = (time) => {
    const part = Math.min(1, Math.max(0, (time - begun) / COUNT_MS));
    state.now = part === 1 ? value : from + (value - from) * (1 - (1 - part) ** 3);
    setText(element, format(Number.isInteger(value) ? Math.round(state.now) : state.now));
    state.frame = part === 1 ? null : requestAnimationFrame(step);
  };
  state.frame = requestAnimationFrame(step);
}

/** Puts `children` into `parent` in this order; those that were there slide to their new place. */
export function reorder(parent, children) {
  const before = new Map([...parent.children].map((child) => [child, child.offsetTop]));
  const present = new Set(children);
  for (const child of [...parent.children]) if (!present.has(child)) child.remove();
  children.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  if (still()) return;
  for (const child of children) {
    const moved = (before.get(child) ?? child.offsetTop) - child.offsetTop;
    if (moved === 0) continue;
    child.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: SLIDE_MS, easing: "cubic-bezier(.3,0,.1,1)" });
  }
}

/** A short glow, for what has just changed. */
export function glow(element) {
  if (!still()) element.animate([{ backgroundColor: "var(--glow)" }, { backgroundColor: "transparent" }], { duration: 1600, easing: "ease-out" });
}
