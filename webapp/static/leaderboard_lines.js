/** The figure of scores over time: a line for each model that one has chosen, told apart by colour, dashes and a name. */

import { h, setText } from "./dom.js";
import { language, number, t } from "./i18n.js";
import { percent, svg, ticks } from "./svg.js";

const SERIES = 8; // lines at once; each has a look of its own
const FIRST = 6; // lines that are there at first
const OFFERED = 25;
const APART = 6; // percent of the height, between names at the lines' ends
const GRID = 1000; // units of the drawing, in both directions
const days = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeZone: "UTC" });
const short = new Intl.DateTimeFormat(language, { month: "short", day: "numeric", timeZone: "UTC" });

/** Draw it. `state` holds what is chosen, by the place among the looks, and which day is read. */
export function history(plot, board, state) {
  const { dates, scores } = board.history;
  const offered = board.models.map(({ name }) => name).filter((name) => scores[name]).slice(0, OFFERED);
  state.chosen ??= offered.slice(0, FIRST);
  state.chosen.forEach((name, slot) => name && !scores[name] && delete state.chosen[slot]);
  if (!dates.length) {
    plot.replaceChildren(h("p", { class: "figure-empty" }, t("Scores over time are kept without style control only.")));
    return;
  }
  const again = () => {
    const focused = plot.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const lines = state.chosen.flatMap((name, slot) => (name ? [{ name, look: `s${slot}`, values: scores[name] }] : []));
    const open = plot.querySelector("details")?.open ?? false;
    plot.replaceChildren(legend(offered, state, again), drawing(dates, lines, state), numbers(dates, lines, open));
    if (focused) plot.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  };
  again();
}

function legend(offered, state, again) {
  const choose = (name) => {
    const slot = state.chosen.indexOf(name);
    if (slot >= 0) delete state.chosen[slot];
    else state.chosen[free(state.chosen)] = name;
    again();
  };
  const button = (name) => {
    const slot = state.chosen.indexOf(name);
    const sample = svg("svg", { class: `sample s${slot}`, "aria-hidden": "true" }, svg("line", { class: "line", x1: 1, x2: "100%", y1: "50%", y2: "50%" }));
    return h("button", { type: "button", "aria-pressed": String(slot >= 0), "data-name": name, onclick: () => choose(name) }, slot >= 0 && sample, name);
  };
  return h("div", { class: "legend", role: "group", "aria-label": t("Models in the figure, {count} at most", { count: SERIES }) }, ...offered.map(button));
}

/** The look for one more line: one that is free, or that of the last line. */
function free(chosen) {
  const found = Array.from({ length: SERIES }, (_, slot) => slot).find((slot) => !chosen[slot]);
  return found ?? SERIES - 1;
}

function drawing(dates, lines, state) {
  const values = lines.flatMap((line) => line.values.filter((value) => value != null));
  const room = 0.05 * (Math.max(...values) - Math.min(...values) || 20);
  const [low, high] = values.length ? [Math.min(...values) - room, Math.max(...values) + room] : [0, 1];
  const up = percent(high, low);
  const along = (i) => (dates.length > 1 ? `${(100 * i) / (dates.length - 1)}%` : "50%");
  const marks = values.length ? ticks(low, high, 5) : [];
  const area = svg(
    "svg",
    { class: "chart area", role: "img" },
    svg("title", {}, t("Scores over time")),
    svg("desc", {}, lines.map(({ name, values: all }) => told(name, all)).join(" ")),
    ...marks.map((mark) => svg("line", { class: "grid", x1: 0, x2: "100%", y1: up(mark), y2: up(mark) })),
    svg("svg", { viewBox: `0 0 ${GRID} ${GRID}`, preserveAspectRatio: "none", width: "100%", height: "100%" }, ...lines.map((line) => path(line, low, high))),
    ...lines.flatMap((line) => alone(line, along, up)),
  );
  const cursor = svg("g", { class: "cursor" });
  area.append(cursor);
  const said = h("p", { class: "reading", "aria-live": "polite" }, "\u00a0");
  const read = (i) => {
    state.at = Math.min(Math.max(i, 0), dates.length - 1);
    const there = lines.filter((line) => line.values[state.at] != null).sort((a, b) => b.values[state.at] - a.values[state.at]);
    cursor.replaceChildren(
      svg("line", { x1: along(state.at), x2: along(state.at), y1: 0, y2: "100%" }),
      ...there.map((line) => svg("circle", { class: `dot ${line.look}`, cx: along(state.at), cy: up(line.values[state.at]), r: 4 })),
    );
    setText(said, `${day(days, dates[state.at])}: ${there.map((line) => `${line.name} ${number(line.values[state.at])}`).join(", ")}`);
  };
  const frame = h(
    "div",
    { class: "lines", tabindex: 0, role: "group", "aria-label": t("Scores over time: the left and right arrow keys read day after day") },
    svg("svg", { class: "chart scores", "aria-hidden": "true" }, ...marks.map((mark) => svg("text", { class: "tick", x: "100%", y: up(mark), dx: -8, dy: "0.35em", "text-anchor": "end" }, number(mark)))),
    area,
    svg("svg", { class: "chart names", "aria-hidden": "true" }, ...names(lines, low, high)),
    svg("svg", { class: "chart dates", "aria-hidden": "true" }, ...span(dates).map(([i, anchor]) => svg("text", { class: "tick", x: along(i), y: "1.1em", "text-anchor": anchor }, day(short, dates[i])))),
  );
  frame.addEventListener("pointermove", ({ clientX }) => {
    const box = area.getBoundingClientRect();
    read(Math.round(((clientX - box.left) / box.width) * (dates.length - 1)));
  });
  frame.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    read((state.at ?? dates.length) + by);
  });
  if (state.at != null) read(state.at);
  return h("div", {}, frame, said);
}

function path({ look, values }, low, high) {
  const last = values.length - 1 || 1;
  let d = "";
  values.forEach((value, i) => {
    if (value == null) return;
    const begins = i === 0 || values[i - 1] == null;
    d += `${begins ? "M" : "L"}${((GRID * i) / last).toFixed(1)} ${((GRID * (high - value)) / (high - low)).toFixed(1)}`;
  });
  return svg("path", { class: `line ${look}`, d, "vector-effect": "non-scaling-stroke" });
}

/** Values without one beside them, which a line does not show. */
function alone({ look, values }, along, up) {
  const found = values.flatMap((value, i) => (value != null && values[i - 1] == null && values[i + 1] == null ? [i] : []));
  return found.map((i) => svg("circle", { class: `dot ${look}`, cx: along(i), cy: up(values[i]), r: 3.5 }));
}

/** Names beside the ends of lines, none over another. */
function names(lines, low, high) {
  const ends = lines.map(({ name, look, values }) => ({ name, look, at: (100 * (high - (values.at(-1) ?? low))) / (high - low) })).sort((a, b) => a.at - b.at);
  ends.forEach((end, i) => (end.at = Math.max(end.at, i ? ends[i - 1].at + APART : 3)));
  for (let i = ends.length - 1, most = 97; i >= 0; i -= 1, most -= APART) ends[i].at = Math.min(ends[i].at, most);
  return ends.map(({ name, look, at }) => svg("text", { class: `label ${look}`, x: 10, y: `${at}%`, dy: "0.35em" }, name));
}

/** Which days stand below the drawing. */
function span(dates) {
  if (dates.length < 3) return dates.map((_, i) => [i, dates.length === 1 ? "middle" : i ? "end" : "start"]);
  return [[0, "start"], [Math.floor((dates.length - 1) / 2), "middle"], [dates.length - 1, "end"]];
}

function told(name, values) {
  const [first, last] = [values.find((value) => value != null), values.findLast((value) => value != null)];
  return t("{name}: from {first} to {last}.", { name, first: number(first ?? 0), last: number(last ?? 0) });
}

function numbers(dates, lines, open) {
  const head = h("tr", {}, h("th", { scope: "col" }, t("Day")), ...lines.map(({ name }) => h("th", { scope: "col" }, name)));
  const rows = dates.map((date, i) => h("tr", {}, h("th", { scope: "row" }, day(days, date)), ...lines.map(({ values }) => h("td", {}, values[i] == null ? "–" : number(values[i])))));
  const table = h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
  return h("details", { open }, h("summary", {}, t("As numbers")), h("div", { class: "numbers", tabindex: 0, role: "region", "aria-label": t("As numbers") }, table));
}

function day(format, text) {
  return format.format(new Date(`${text}T00:00:00Z`));
}
