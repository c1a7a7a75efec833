// The result itself: the leader, the figures at a glance, and every candidate as bars, ring and table.

import { Chart, horizontalBars, inWords, tooltip } from "./chart.js";
import { candidateColour } from "./colours.js";
import { Portrait, byId, complaint, make, say, setMeter, setText } from "./dom.js";
import { count, name, number, percent, percentExact, plural, shareOf } from "./format.js";

/** A lead of fewer points than this is no lead yet. */
const CLOSE_POINTS = 0.5;
/** A few candidates' bars are as tall together as the ring beside them. */
const BARS = { rowHeight: 84 };
const NO_PARTY = "No party";
const NO_NAME = "Unnamed candidate";

const leaderPhoto = new Portrait("large");

export function renderSummary(answer) {
  const problem = complaint(answer);
  say(byId("tiles"), problem);
  say(byId("leader"), problem);
  if (problem) return;
  const row = answer.data.rows[0] ?? {};
  setText(byId("tile-registered"), count(row.registered));
  setText(byId("tile-candidates"), count(row.candidates));
  setText(byId("tile-votes"), count(row.votes_cast));
  setText(byId("tile-turnout"), percent(row.turnout_pct));
  renderLeader(row);
}

function renderLeader(row) {
  const panel = byId("leader");
  const led = row.leader_id !== null && row.leader_id !== undefined;
  const photo = byId("leader-photo");
  byId("leader-figures").hidden = !led;
  byId("leader-party").hidden = !led;
  photo.hidden = !led;
  if (!led) {
    setText(byId("leader-name"), "No votes yet");
    byId("leader-close").hidden = true;
    panel.style.removeProperty("--mark");
    return;
  }
  const who = name(row.leader_name, NO_NAME);
  if (!leaderPhoto.element.isConnected) photo.replaceChildren(leaderPhoto.element);
  leaderPhoto.show(who, row.leader_photo_url, `Portrait of ${who}`);
  panel.style.setProperty("--mark", candidateColour(row.leader_id));
  const points = number(row.margin_points);
  const margin = number(row.margin_votes);
  const close = points !== null && points < CLOSE_POINTS;
  setText(byId("leader-name"), who);
  setText(byId("leader-party"), name(row.leader_party, NO_PARTY));
  setText(byId("leader-votes"), count(row.leader_votes));
  setText(byId("leader-margin"), margin === 0 ? "Level" : plural(margin, "vote"));
  setText(byId("leader-points"), points === null ? "–" : `${percentExact(points).replace(" %", "")} points`);
  const badge = byId("leader-close");
  if (badge.hidden === close) badge.hidden = !close;
}

/** Candidates by votes, with what every presentation of them needs. */
function standings(rows) {
  const total = rows.reduce((sum, row) => sum + (number(row.total_votes) ?? 0), 0);
  const items = rows.map((row) => {
    const votes = number(row.total_votes) ?? 0;
    return { id: row.candidate_id, name: name(row.candidate_name, NO_NAME), party: name(row.party_affiliation, NO_PARTY),
      photo: row.photo_url, votes, share: shareOf(votes, total), colour: candidateColour(row.candidate_id) };
  });
  items.sort((a, b) => b.votes - a.votes || String(a.id).localeCompare(String(b.id)));
  return { total, items };
}

export class Candidates {
  #bars = new Chart("bars");
  #donut = new Chart("donut");
  #panel = byId("candidates");
  #rows = new Map();

  render(answer) {
    const problem = complaint(answer) ?? (answer.data.rows.length === 0 ? "There are no candidates." : null);
    this.#bars.message(problem);
    this.#donut.message(problem);
    say(this.#panel, problem);
    if (problem) return;
    // Colours are looked up when drawn, so that a change of theme finds the new ones.
    const read = () => standings(answer.data.rows);
    this.#renderBars(read);
    this.#renderDonut(read);
    this.#renderTable(read());
  }

  #renderBars(read) {
    const items = () => read().items.map((c) => ({ name: c.name, value: c.votes, text: count(c.votes), colour: c.colour,
      lines: [c.name, c.party, `${plural(c.votes, "vote")}, ${percentExact(c.share)}`] }));
    const { height } = horizontalBars(items(), BARS);
    this.#bars.show({ label: inWords("Votes per candidate", items()), height,
      option: (colours, width) => horizontalBars(items(), BARS).option(colours, width) });
  }

  #renderDonut(read) {
    const { total, items } = read();
    const label = total === 0 ? "Share of the votes: no votes yet" : inWords("Share of the votes", items.map((c) => ({ name: c.name, text: percent(c.share) })));
    this.#donut.show({ label, option: (colours) => donut(read(), colours) });
  }

  #renderTable({ items }) {
    const body = this.#panel.querySelector("tbody");
    const present = new Set(items.map((c) => c.id));
    for (const [id, row] of this.#rows) {
      if (present.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    items.forEach((candidate, place) => {
      let row = this.#rows.get(candidate.id);
      if (!row) this.#rows.set(candidate.id, (row = candidateRow()));
      fillRow(row, candidate);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
  }
}

function candidateRow() {
  const element = make("tr");
  const portrait = new Portrait("small");
  const photo = make("td", "photo");
  photo.append(portrait.element);
  const head = make("th");
  head.scope = "row";
  const [who, under] = [make("span"), make("span", "under")];
  head.append(who, under);
  const [party, votes, share] = [make("td", "party"), make("td", "number"), make("td", "number share")];
  const [percentage, meter] = [make("span"), make("span", "meter")];
  share.append(percentage, meter);
  element.append(photo, head, party, votes, share);
  return { element, portrait, who, under, party, votes, percentage, meter };
}

function fillRow(row, candidate) {
  row.portrait.show(candidate.name, candidate.photo, "");
  setText(row.who, candidate.name);
  setText(row.under, candidate.party);
  setText(row.party, candidate.party);
  setText(row.votes, count(candidate.votes));
  setText(row.percentage, percentExact(candidate.share));
  setMeter(row.meter, candidate.share, candidate.colour);
}

function donut({ total, items }, colours) {
  const none = total === 0;
  const slices = items.map((c) => ({ name: c.name, value: c.votes, itemStyle: { color: c.colour } }));
  const labelled = (dataIndex) => !none && (items[dataIndex]?.share ?? 0) >= 5;
  return {
    title: { text: none ? "No votes yet" : count(total), subtext: none ? "" : total === 1 ? "vote" : "votes", left: "center", top: "center",
      itemGap: 6, textStyle: { color: none ? colours.quiet : colours.text, fontSize: none ? 16 : 22, fontFamily: colours.font },
      subtextStyle: { color: colours.quiet, fontSize: 14, fontFamily: colours.font } },
    tooltip: { ...tooltip(colours, "item", ({ dataIndex }) => {
      const c = items[dataIndex];
      return c ? [c.name, c.party, `${plural(c.votes, "vote")}, ${percentExact(c.share)}`] : [];
    }), show: !none },
    series: [{
      id: "shares",
      type: "pie",
      radius: ["49%", "67%"],
      startAngle: 90,
      silent: none,
      stillShowZeroSum: false,
      emptyCircleStyle: { color: colours.empty },
      itemStyle: { borderColor: colours.panel, borderWidth: 2 },
      label: { show: true, overflow: "none", bleedMargin: 0, color: colours.text, fontSize: 14, fontWeight: 600, formatter: ({ dataIndex }) => percent(items[dataIndex]?.share) },
      labelLine: { length: 8, length2: 4, lineStyle: { color: colours.quiet } },
      data: none ? [] : slices.map((slice, i) => (labelled(i) ? slice : { ...slice, label: { show: false }, labelLine: { show: false } })),
    }],
  };
}

export class Parties {
  #chart = new Chart("parties");

  render(answer, candidates) {
    const problem = complaint(answer) ?? (answer.data.rows.length === 0 ? "There are no parties." : null);
    this.#chart.message(problem);
    if (problem) return;
    const total = answer.data.rows.reduce((sum, row) => sum + (number(row.total_votes) ?? 0), 0);
    const items = () => answer.data.rows.map((row) => {
      const votes = number(row.total_votes) ?? 0;
      const party = name(row.party_affiliation, NO_PARTY);
      return { name: party, value: votes, text: count(votes), colour: partyColour(row, candidates),
        lines: [party, plural(row.candidates, "candidate"), `${plural(votes, "vote")}, ${percentExact(shareOf(votes, total))}`] };
    }).sort((a, b) => b.value - a.value || a.name.localeCompare(b.name));
    this.#chart.show({ label: inWords("Votes by party", items()), height: horizontalBars(items()).height,
      option: (colours, width) => horizontalBars(items()).option(colours, width) });
  }
}

/** A party with one candidate has the candidate's colour; one with several has none of theirs. */
function partyColour(row, candidates) {
  const members = (candidates?.data?.rows ?? []).filter((c) => c.party_affiliation === row.party_affiliation);
  return members.length === 1 ? candidateColour(members[0].candidate_id) : null;
}
