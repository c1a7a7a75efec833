// The result alone, for a frame in another page.

import { json } from "./api.js";
import { onThemeChange } from "./colours.js";
import { byId, setText } from "./dom.js";
import { renderHeadline } from "./headline.js";
import { Live } from "./live.js";
import { fromStandings, Ranking } from "./ranking.js";

const VIEWS = ["election_summary", "election_call", "standings"];
const RETRY_MS = 2_000;
const STATES = { live: "Live", lost: "Connection lost. Trying again…" };

start();

async function start() {
  let views;
  try {
    views = await json("/api/views");
  } catch {
    setTimeout(start, RETRY_MS);
    return;
  }
  const ranking = new Ranking(byId("ranking"));
  const live = new Live({ ...views, views: views.views.filter((view) => VIEWS.includes(view.name)) }, {
    onRelease: render,
    onState: (state) => setText(byId("health-text"), STATES[state]),
  });
  function render() {
    renderHeadline(live.rows("election_summary")[0], live.rows("election_call")[0]);
    ranking.render(fromStandings(live.rows("standings")));
  }
  onThemeChange(render);
  live.start();
}
