// The integrity panel: whether every message is accounted for, and what was rejected and why.

import { byId, make, say } from "./dom.js";
import { count, duration, name, number, plural } from "./format.js";

/** What a rule's name means to a reader; the name itself is shown too. */
const REASONS = [
  [/^primary_key/, "Has voted already"],
  [/^foreign_key\(candidate_id\)/, "No such candidate"],
  [/^foreign_key\(voter_id\)/, "Not a registered voter"],
  [/^foreign_key/, "Refers to nothing known"],
  [/^check/, "Breaks a rule"],
  [/^not_null/, "Something is missing"],
  [/^json/, "Cannot be read"],
  [/^future/, "Dated in the future"],
  [/^late/, "Came too late"],
];

/** `status` is what /api/status says, or null. */
export function renderIntegrity(status) {
  const panel = byId("integrity");
  const problem = !status ? "Waiting for data…" : status.sources?.length ? null : "Nothing is being read.";
  say(panel, problem);
  if (problem) return;
  const notes = (status.reference_tables ?? []).filter((table) => table.error)
    .map((table) => make("p", "warning", `Register “${table.name}” could not be read again; the count goes on with the one of ${duration(table.age_s)} ago.`));
  panel.querySelector(".content").replaceChildren(...notes, ...status.sources.map((source) => sourcePart(source, status.sources.length > 1)));
}

function sourcePart(source, titled) {
  const part = make("div", "source");
  if (titled) part.append(make("h3", "", name(source.name)));
  if (source.lost_messages > 0) {
    part.append(make("p", "warning", `${plural(source.lost_messages, "message")} had gone from the topic before they could be read: this is not the whole count.`));
  }
  part.append(equation(source), ...rejections(source.rejected_by_reason ?? {}, source.rejected));
  return part;
}

function equation({ received, counted, rejected }) {
  const holds = number(received) === number(counted) + number(rejected);
  const box = make("div", `equation ${holds ? "holds" : "fails"}`);
  const sum = make("p", "sum");
  const terms = [[received, "received"], ["="], [counted, "counted"], ["+"], [rejected, "rejected"]];
  for (const [value, label] of terms) {
    const term = make("span", label ? "term" : "sign");
    if (label) term.append(make("strong", "", count(value)), make("span", "quiet", label));
    else term.textContent = value;
    sum.append(term);
  }
  box.append(sum, make("p", "verdict", holds ? "✓ Every message is accounted for" : "✗ The sum does not hold"));
  return box;
}

function rejections(byReason, rejected) {
  const reasons = Object.entries(byReason).sort((a, b) => b[1] - a[1]);
  if (reasons.length === 0) return number(rejected) === 0 ? [make("p", "quiet", "Nothing has been rejected.")] : [];
  const list = make("dl", "facts");
  for (const [reason, messages] of reasons) {
    const words = REASONS.find(([pattern]) => pattern.test(reason))?.[1];
    const term = addFact(list, words ?? reason, count(messages));
    if (words) term.append(make("code", "", reason));
  }
  return [make("h3", "", "Rejected, by reason"), list];
}

function addFact(list, label, value) {
  const line = make("div");
  const term = make("dt", "", label);
  line.append(term, make("dd", "", value));
  list.append(line);
  return term;
}
