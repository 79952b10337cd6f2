/**
 * The leaderboard's page: filters, order and search without loading it anew, and numbers that follow the votes. All that
 * it shows comes from the server as the page itself, of which only what differs is put in, so focus and scrolling stay.
 */

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { morph } from "./morph.js";
import { startNav } from "./nav.js";

const LOOK_MS = 1000;
const AWAY_MS = 5000; // while the server cannot be reached
const FLASH_MS = 1600;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const main = $("main");
const form = $("filters");
const idle = globalThis.requestIdleCallback ?? ((run) => setTimeout(run, 50));
let tag = main.dataset.tag; // of what is shown, as the server names it
let asking = null; // stops the last question when there is a newer one
let timer = 0;
let figures = null; // when there is time for them

startNav();
form.addEventListener("submit", (event) => {
  event.preventDefault();
  go(chosen());
});
form.addEventListener("change", (event) => event.target.id !== "q" && inOrder() && go(chosen()));
$("q").addEventListener("input", search);
$("board-table").addEventListener("click", follow);
addEventListener("popstate", () => go(location.search, false));
document.addEventListener("visibilitychange", () => document.hidden || look());
plan(LOOK_MS);
if (document.readyState === "complete") idle(rest);
else addEventListener("load", () => idle(rest));

/** What need not be there when the page opens: most of many rows, and the figures. */
async function rest() {
  document.documentElement.dataset.whole = "";
  try {
    const { Figures } = await import("./leaderboard_figures.js");
    figures = new Figures($("figures"), board);
  } catch {
    setTimeout(rest, 5 * LOOK_MS); // the server is away
  }
}

/** What the form says, as a query. */
function chosen() {
  const query = new URLSearchParams(new FormData(form));
  for (const [name, value] of [...query]) if (!value) query.delete(name);
  return `?${query}`;
}

/** Whether the days are; if not, the form says so. */
function inOrder() {
  const [from, to] = [$("from").value, $("to").value];
  $("to").setCustomValidity(from && to && from > to ? t("This day is before the first one.") : "");
  return form.reportValidity();
}

/** A click on a column's name, or on a way out of an empty table, without a new page. */
function follow(event) {
  const link = event.target.closest("a[href^='/leaderboard']");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  const query = new URLSearchParams(link.search);
  if ($("q").value) query.set("q", $("q").value);
  go(`?${query}`);
}

/** Show what a query asks for; `push` it as a step that one can go back. */
async function go(query, push = true) {
  main.setAttribute("aria-busy", "true");
  const address = location.pathname + query;
  try {
    await ask(address, null);
  } catch (error) {
    if (error.name !== "AbortError") location.assign(address); // the browser says what is wrong
    return;
  }
  form.reset(); // to what the page says now
  main.removeAttribute("aria-busy");
  if (push && main.dataset.address !== location.pathname + location.search) window.history.pushState(null, "", main.dataset.address);
}

/** Rows that are searched for; the rest is hidden here and, when the page comes again, by the server. */
function search() {
  const wanted = $("q").value.trim().toLowerCase();
  let found = 0;
  for (const row of document.querySelectorAll("[data-find]")) found += !(row.hidden = !row.dataset.find.includes(wanted));
  if ($("nobody")) $("nobody").hidden = found > 0;
  window.history.replaceState(null, "", location.pathname + chosen());
}

function plan(ms) {
  clearTimeout(timer);
  timer = setTimeout(look, ms);
}

/** Whether there are newer numbers. */
async function look() {
  if (document.hidden || main.ariaBusy) return plan(LOOK_MS);
  const before = new Map([...document.querySelectorAll("tr[data-name]")].map((row) => [row.dataset.name, votes(row)]));
  try {
    if (await ask(location.pathname + location.search, tag)) flash(before);
    $("board-away").hidden = true;
    plan(LOOK_MS);
  } catch (error) {
    if (error.name === "AbortError") return plan(LOOK_MS);
    $("board-away").hidden = false;
    plan(AWAY_MS);
  }
}

/** Put in what this address shows, if it is not what the tag says; whether it was something else. */
async function ask(address, known) {
  asking?.abort();
  asking = new AbortController();
  const headers = { Accept: "text/html", ...(known && { "If-None-Match": `W/"${known}"` }) };
  const response = await fetch(address, { headers, cache: "no-store", signal: asking.signal });
  if (response.status === 304) return false;
  if (!response.ok) throw new Error(String(response.status));
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("main");
  tag = fresh.dataset.tag;
  keepOpen(fresh);
  morph(main, fresh);
  figures?.renew();
  return true;
}

/** What is being looked at or typed into does not change under its reader's hands. */
function keepOpen(fresh) {
  if (main.querySelector(":popover-open")) fresh.querySelector("#board-methods").replaceWith($("board-methods").cloneNode(true));
  fresh.querySelector("#board-away").hidden = $("board-away").hidden;
}

/** Mark for a moment whose votes have become more. */
function flash(before) {
  if (calm.matches) return;
  const color = getComputedStyle(main).getPropertyValue("--accent-soft");
  for (const row of document.querySelectorAll("tr[data-name]")) {
    if (!before.has(row.dataset.name) || before.get(row.dataset.name) === votes(row)) continue;
    for (const cell of row.cells) cell.animate([{ backgroundColor: color }, {}], { duration: FLASH_MS, easing: "ease-out" });
  }
}

function votes(row) {
  return row.querySelector(".c-votes")?.textContent;
}

/** The board as numbers, for the figures: with all models, whatever is searched for. */
async function board() {
  const { searchParams } = new URL(main.dataset.address, location);
  searchParams.delete("q");
  const response = await fetch(`/leaderboard.json?${searchParams}`, { cache: "no-cache" });
  return response.ok ? response.json() : null;
}
