// Who has voted: turnout of each group of voters as bars of 100 %.

import { byId, make, resize, say, setText } from "./dom.js";
import { count, name, number, percent } from "./format.js";

/** `ages` and `genders` are rows of turnout_by_age and turnout_by_gender. */
export function renderTurnout(ages, genders) {
  say(byId("turnout"), ages.length + genders.length === 0 ? "No voters are registered." : null);
  bars(byId("ages"), ages, "age_band");
  bars(byId("genders"), genders, "gender");
}

function bars(list, rows, column) {
  const sorted = [...rows].sort((a, b) => name(a[column], "\uffff").localeCompare(name(b[column], "\uffff")));
  resize(list, sorted.length, newBar).forEach((item, i) => {
    const row = sorted[i];
    const [label, figure, meter] = item.children;
    const text = name(row[column]);
    setText(label, text.charAt(0).toUpperCase() + text.slice(1));
    setText(figure, percent(row.turnout_pct));
    figure.title = number(row.count) === null ? "" : `${count(row.count)} of ${count(row.registered)}`;
    meter.firstElementChild.style.transform = `scaleX(${(number(row.turnout_pct) ?? 0) / 100})`;
  });
}

function newBar() {
  const item = make("li");
  const meter = make("span", "meter");
  meter.setAttribute("aria-hidden", "true");
  meter.append(make("span"));
  item.append(make("span"), make("strong"), meter);
  return item;
}
