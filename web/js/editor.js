// The console's editor: a text field with line numbers, in which an error is marked where it is.

import { byId, make, setText } from "./dom.js";

export class Editor {
  #field = byId("query");
  #lines = byId("lines");
  #problem = byId("problem");
  /** What an error has selected, which is no wish to run that alone. */
  #marked = null;

  constructor({ onRun, onEdit }) {
    this.#field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        onRun();
      }
    });
    this.#field.addEventListener("input", () => {
      this.clear();
      onEdit();
    });
    this.#field.addEventListener("scroll", () => { this.#lines.scrollTop = this.#field.scrollTop; });
  }

  get text() {
    return this.#field.value;
  }

  set text(text) {
    this.#field.value = text;
    this.#field.rows = Math.min(24, Math.max(8, text.split("\n").length + 1));
    this.clear();
  }

  /** What is selected, or else all. */
  get wanted() {
    const { selectionStart, selectionEnd, value } = this.#field;
    const selected = value.slice(selectionStart, selectionEnd);
    const marked = this.#marked?.start === selectionStart && this.#marked.end === selectionEnd;
    return selected.trim() && !marked ? selected : value;
  }

  focus() {
    this.#field.focus();
  }

  insert(text) {
    this.#field.setRangeText(text, this.#field.selectionStart, this.#field.selectionEnd, "end");
    this.#field.dispatchEvent(new Event("input"));
    this.focus();
  }

  clear() {
    this.#problem.hidden = true;
    this.#field.removeAttribute("aria-invalid");
    this.#number(null);
  }

  /** Shows a message, and where it says so, the line and column of the query `within` which it was found. */
  mark({ message, line = null, column = null, within = "" }) {
    this.#field.setAttribute("aria-invalid", "true");
    this.#problem.hidden = false;
    const offset = Math.max(0, this.text.indexOf(within));
    const source = within.split("\n")[(line ?? 0) - 1];
    if (line === null || source === undefined) {
      setText(this.#problem, message);
      return;
    }
    const before = this.text.slice(0, offset).split("\n").length - 1;
    this.#number(before + line);
    const at = Math.max(0, (column ?? 1) - 1);
    setText(this.#problem, `${message}\n\n${source}\n${" ".repeat(at)}^`);
    const start = offset + within.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0) + at;
    const word = /^\w+/.exec(this.text.slice(start))?.[0].length ?? 1;
    this.focus();
    this.#marked = { start, end: start + word };
    this.#field.setSelectionRange(start, start + word);
  }

  #number(wrong) {
    const lines = this.text.split("\n").length;
    this.#lines.replaceChildren(...Array.from({ length: lines }, (_, i) => make("span", i + 1 === wrong ? "wrong" : "", String(i + 1))));
    this.#lines.scrollTop = this.#field.scrollTop;
  }
}
