// Small helpers for the page's elements. Data goes in as text only, never as HTML.

export const byId = (id) => document.getElementById(id);

/** A new element with a class and text. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

/** Sets text only where it differs: a selection and a screen reader's place stay. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes `parent` have exactly `n` children, made by `create`. */
export function resize(parent, n, create) {
  while (parent.children.length > n) parent.lastElementChild.remove();
  while (parent.children.length < n) parent.append(create());
  return [...parent.children];
}

/** Shows a panel's content, or in its place a message: no data yet, or why there is none. */
export function say(panel, message) {
  const line = panel.querySelector(".message");
  setText(line, message ?? "");
  line.hidden = !message;
  panel.querySelector(".content").hidden = Boolean(message);
}

/** What to say when an answer cannot be shown; null when it can. */
export function complaint(answer) {
  if (!answer) return "Waiting for data…";
  if (!answer.problem) return null;
  return answer.problem.status === 404 ? "This view is not there at the moment." : `Not shown: ${answer.problem.text}`;
}

/** A candidate's picture; the initials where there is none or it cannot be loaded. */
export class Portrait {
  #url;
  #name;

  constructor(className) {
    this.element = make("span", `portrait ${className}`);
  }

  show(name, url, alt) {
    const path = sameOrigin(url);
    if (path === this.#url && name === this.#name) return;
    this.#url = path;
    this.#name = name;
    const initials = make("span", "initials", initialsOf(name));
    initials.setAttribute("aria-hidden", "true");
    this.element.replaceChildren(initials);
    if (path === null) return;
    const image = make("img");
    image.alt = alt;
    image.addEventListener("error", () => image.remove());
    image.src = path;
    this.element.append(image);
  }
}

/** The page may load pictures from its own server only; another address would just fail. */
function sameOrigin(url) {
  if (!url) return null;
  try {
    const parsed = new URL(url, location.origin);
    return parsed.origin === location.origin ? parsed.href : null;
  } catch {
    return null;
  }
}

function initialsOf(name) {
  const words = name.split(/\s+/).filter(Boolean);
  return [words[0], words.length > 1 ? words.at(-1) : ""].map((word) => [...(word ?? "")][0] ?? "").join("").toUpperCase();
}

/** A thin bar that is `percent` full; only for the eye, the number stands beside it. */
export function setMeter(meter, percent, color) {
  meter.setAttribute("aria-hidden", "true");
  const fill = resize(meter, 1, () => make("span"))[0];
  fill.style.width = `${Math.min(100, Math.max(0, percent ?? 0))}%`;
  fill.style.backgroundColor = color ?? "";
}
