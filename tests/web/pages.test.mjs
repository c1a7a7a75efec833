// The pages in a real browser, over a night of its own: what readers see is what the server has released, also after a
// restart and an outage; a place can be looked up, with mouse and keyboard; the operator's pages do what they are for.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

import { Demo } from "./demo.mjs";

const PATIENCE_MS = 30_000;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** Long enough for what is tested while votes come in. */
const NIGHT = ["--listen", "127.0.0.1:0", "--voters", "8000", "--seed", "7", "--night", "45s", "--faulty", "0.02"];

let browser;
let demo;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
  demo = await Demo.start(NIGHT);
});
after(async () => {
  await browser?.close();
  await demo?.stop();
});

/** A page that fails the test at an error in the console or a request of another host. */
async function open(path, { quiet = true, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const faults = [];
  page.on("console", (message) => message.type() === "error" && faults.push(`${message.text()} ${message.location().url}`));
  page.on("pageerror", (error) => faults.push(error.stack));
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (!["data:", "blob:"].includes(protocol) && origin !== new URL(demo.url).origin) faults.push(`asks ${request.url()}`);
  });
  await page.goto(new URL(path, demo.url).href);
  page.done = async () => {
    await context.close();
    if (quiet) assert.deepEqual(faults, []);
  };
  return page;
}

const digits = (text) => Number(text.replaceAll(/\D/g, ""));

test("the page shows the numbers of a release while votes arrive", async () => {
  const page = await open("/");
  await page.locator("#ranking .rank").first().waitFor();
  const shown = () => page.evaluate(() => ({
    release: Number(document.documentElement.dataset.release),
    votes: [...document.querySelectorAll("#ranking .rank")].map((row) => [row.querySelector(".rank-name").textContent, row.querySelector(".rank-votes").textContent]),
    counted: document.getElementById("ballots").textContent,
  }));
  const released = new Map();
  let compared = 0;
  const totals = new Set();
  for (const end = Date.now() + PATIENCE_MS; compared < 4 && Date.now() < end;) {
    for (const view of ["standings", "election_summary"]) {
      const { release, rows } = await demo.json(`/api/views/${view}`);
      released.set(release, { ...released.get(release), [view]: rows });
    }
    const { release, votes, counted } = await shown();
    const known = released.get(release);
    if (known?.standings && known.election_summary && !totals.has(counted)) {
      const rows = [...known.standings].sort((a, b) => a.rank - b.rank);
      assert.deepEqual(votes.map(([name, n]) => [name, digits(n)]), rows.map((row) => [row.candidate_name, row.votes]));
      assert.equal(digits(counted.split(" of ")[0]), known.election_summary[0].votes_cast);
      totals.add(counted);
      compared += 1;
    }
    await new Promise((done) => setTimeout(done, 200));
  }
  assert.ok(compared >= 4, `only ${compared} releases could be compared`);
  await page.done();
});

test("a place is found, has an address of its own, and the way back leads back", async () => {
  const page = await open("/");
  await page.locator(".tile[data-state=declared]").first().waitFor();
  const tile = page.locator(".tile[data-state=declared]").first();
  const place = await tile.getAttribute("data-place");
  await tile.click();
  assert.equal(await page.locator(".place-title").textContent(), place);
  assert.equal(new URL(page.url()).searchParams.get("place"), place);
  const { rows } = await demo.json("/api/views/place_results");
  const here = rows.filter((row) => row.place === place).sort((a, b) => a.rank - b.rank);
  const shown = await page.locator("#place .rank").evaluateAll((items) =>
    items.map((row) => [row.querySelector(".rank-name").textContent, Number(row.querySelector(".rank-votes").textContent.replaceAll(/\D/g, ""))]));
  assert.deepEqual(shown, here.map((row) => [row.candidate_name, row.votes]));
  await page.goBack();
  await page.locator("#home").waitFor();
  assert.ok(await page.locator("#place").isHidden());
  await page.fill("#find-place", "isle of w");
  await page.press("#find-place", "Enter");
  await page.locator(".place-title", { hasText: "Isle of Wight" }).waitFor();
  await page.reload();
  await page.locator(".place-title", { hasText: "Isle of Wight" }).waitFor();
  assert.match(await page.title(), /^Isle of Wight/);
  await page.done();
});

test("everything can be reached by keyboard", async () => {
  const page = await open("/");
  await page.locator(".tile").first().waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  for (let i = 0; i < 40 && !(await page.evaluate(() => document.activeElement.classList.contains("tile"))); i++) await page.keyboard.press("Tab");
  const first = await page.evaluate(() => document.activeElement.dataset.place);
  assert.ok(first, "no tile can be reached with the tab key");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowRight");
  const second = await page.evaluate(() => document.activeElement.dataset.place);
  assert.ok(second && second !== first, `${first} → ${second}`);
  assert.match(await page.locator("#tile-note").textContent(), new RegExp(`^${second}`));
  await page.keyboard.press("Enter");
  await page.locator(".place-title", { hasText: second }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), second);
  await page.goBack();
  await page.focus("#places thead .sort");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#places thead th[aria-sort]").first().getAttribute("aria-sort"), "ascending");
  assert.match(page.url(), /sort=place/);
  await page.done();
});

test("a pause is said in words", async () => {
  const page = await open("/");
  await page.locator("#integrity .equation").waitFor();
  await page.route("**/api/status", async (route) => {
    const status = await (await route.fetch()).json();
    status.paused = [{ what: "reading topic votes_topic", paused_since: "2026-05-07T21:30:00Z", reason: "kafka gives no answer", ends_by_itself: true }];
    await route.fulfill({ json: status });
  });
  await page.locator("#alerts", { hasText: "Counting has been paused since" }).waitFor();
  assert.equal(await page.locator("#health").getAttribute("data-state"), "stale");
  await page.unroute("**/api/status");
  await page.locator("#alerts").waitFor({ state: "hidden" });
  await page.done();
});

test("the console runs a query, and marks an error where it is", async () => {
  const page = await open(`/console.html#token=${demo.token}`, { quiet: false });
  assert.ok(!page.url().includes(demo.token), "the token does not stay in the address");
  await page.locator("#schema summary", { hasText: "standings" }).first().waitFor();
  await page.fill("#query", "SELECT candidate_name, votes\nFROM standings\nORDER BY votes DESC");
  await page.press("#query", "Control+Enter");
  await page.locator("#rows tbody tr").nth(4).waitFor();
  assert.equal(await page.locator("#rows tbody tr").count(), 5);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#csv")]);
  assert.match(readFileSync(await download.path(), "utf8"), /^candidate_name,votes\r\n.+,\d+\r\n/);
  await page.click("#as-chart");
  await page.locator("#chart canvas").waitFor();
  await page.fill("#query", "SELECT candidate_name,\n  vootes\nFROM standings");
  await page.press("#query", "Control+Enter");
  await page.locator("#problem", { hasText: "vootes" }).waitFor();
  assert.equal(await page.locator("#lines .wrong").textContent(), "2");
  assert.equal(await page.evaluate(() => { const f = document.getElementById("query"); return f.value.slice(f.selectionStart, f.selectionEnd); }), "vootes");
  await page.locator("#schema summary", { hasText: "place_overview" }).click();
  await page.locator("#schema details[open] button", { hasText: "Plan and rows" }).click();
  await page.locator("#view-plan", { hasText: "aggregate_" }).waitFor();
  await page.locator("#view-rows tbody tr").first().waitFor();
  await page.done();
});

test("operations and the plain page of all views show what there is", async () => {
  const page = await open("/operations.html");
  await page.locator("#sources td", { hasText: "votes_topic" }).waitFor();
  await page.locator("#rejects td", { hasText: "primary_key" }).waitFor();
  await page.locator("#state td", { hasText: /^place_overview$/ }).waitFor();
  await page.done();
  const views = await open("/views.html");
  await views.locator("summary", { hasText: "standings" }).click();
  await views.locator("details[open] tbody tr").nth(4).waitFor();
  await views.done();
});

for (const [name, path, options] of [
  ["the result", "/", {}], ["the result in the dark", "/", { colorScheme: "dark" }], ["the result on a phone", "/", { viewport: { width: 360, height: 740 } }],
  ["a place", "/?place=Kent", {}], ["a wall", "/?kiosk", {}], ["the embedded result", "/embed.html", {}],
  ["the console", "/console.html", {}], ["operations", "/operations.html", {}], ["all views", "/views.html", {}],
]) {
  test(`axe finds no serious fault: ${name}`, async () => {
    const page = await open(path, { quiet: false, ...options });
    await page.waitForFunction(() => !document.body.textContent.includes("Connecting…"));
    await page.waitForTimeout(500);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    assert.deepEqual(serious.map(({ id, nodes }) => [id, nodes.map((node) => `${node.html} ${node.failureSummary}`)]), []);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wide <= 0, `the page is ${wide} px too wide`);
    await page.done();
  });
}

test("the night ends with Final, and stays", async () => {
  const page = await open("/");
  await page.locator("#call[data-call=final]").waitFor({ timeout: 90_000 });
  assert.match(await page.locator("#headline-text").textContent(), / is elected, /);
  assert.equal(await page.locator("#counted-pct").textContent(), "100.0 %");
  assert.equal(await page.locator("#health").getAttribute("data-state"), "final");
  assert.equal(await page.locator(".tile:not([data-state=declared])").count(), 0);
  assert.match(await page.locator("#ticker .event-text").first().textContent(), / is elected, /);
  const changes = await page.locator("#ticker .event.lead").count();
  const lines = await page.locator("#timeline .chart").getAttribute("aria-label");
  await page.done();
  // Who comes later sees the whole night.
  const late = await open("/");
  await late.locator("#call[data-call=final]").waitFor();
  await late.waitForFunction((label) => document.querySelector("#timeline .chart").getAttribute("aria-label") === label, lines);
  assert.equal(await late.locator("#ticker .event.lead").count(), changes);
  assert.ok(changes >= 2, `the lead has changed ${changes} times`);
  const { releases } = await demo.json("/api/views/vote_shares/history");
  assert.ok(releases.length > 10 && releases.every(({ rows }) => rows.length === 5), `${releases.length} releases`);
  await late.done();
});

test("an outage keeps what was shown, a restart is said in words", async () => {
  const page = await open("/", { quiet: false });
  await page.locator("#health[data-state=final]").waitFor();
  const before = await page.locator("#ballots").textContent();
  const port = demo.port;
  await demo.stop();
  await page.locator("#health-text", { hasText: "Connection lost. Results are of" }).waitFor();
  assert.equal(await page.locator("#ballots").textContent(), before);
  demo = await Demo.start([...NIGHT.slice(2), "--listen", `127.0.0.1:${port}`]);
  await page.locator("#alerts", { hasText: "The count began again at" }).waitFor();
  await page.locator("#health[data-state=live]").waitFor();
  await page.waitForFunction((was) => document.getElementById("ballots").textContent !== was, before);
  await page.done();
});
