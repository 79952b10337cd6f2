/** Figures with a field for each pair of models. They are tables with numbers in them, which colours make quick to look at. */

import { h, setText } from "./dom.js";
import { language, number, t } from "./i18n.js";

const SHADES = 9; // of a share of wins, from all lost to all won
const STEPS = 5; // of a count
const compact = new Intl.NumberFormat(language, { notation: "compact", maximumSignificantDigits: 2 });

/** The share of battles that the row's model wins against the column's. */
export function wins(plot, { heat }) {
  show(plot, heat, {
    caption: t("Percent of the battles that the row’s model wins against the column’s"),
    field: (i, j) => heat.win[i][j] != null && { text: number(100 * heat.win[i][j]), shade: `w${shade(heat.win[i][j])}` },
    reading: (i, j) =>
      t("{a} wins {share} % of {count} battles against {b}", {
        a: heat.names[i],
        b: heat.names[j],
        share: number(100 * heat.win[i][j], 1),
        count: number(heat.count[i][j]),
      }),
    scale: [t("loses all"), Array.from({ length: SHADES }, (_, k) => `w${k}`), t("wins all")],
  });
}

/** How often each pair has met. */
export function counts(plot, { heat }) {
  const most = Math.max(1, ...heat.count.flat());
  show(plot, heat, {
    caption: t("Battles of the row’s model with the column’s"),
    field: (i, j) => heat.count[i][j] > 0 && { text: compact.format(heat.count[i][j]), shade: `n${step(heat.count[i][j], most)}` },
    reading: (i, j) => t("{a} and {b} have met {count} times", { a: heat.names[i], b: heat.names[j], count: number(heat.count[i][j]) }),
    scale: ["1", Array.from({ length: STEPS }, (_, k) => `n${k}`), number(most)],
  });
}

function show(plot, { names }, { caption, field, reading, scale: [least, shades, most] }) {
  if (names.length < 2) {
    plot.replaceChildren(h("p", { class: "figure-empty" }, t("Two models have to have met for this.")));
    return;
  }
  const cell = (i, j) => {
    const found = i !== j && field(i, j);
    return found ? h("td", { class: found.shade, "data-i": i, "data-j": j }, found.text) : h("td", { class: "none" });
  };
  const name = (text, scope) => h("th", { scope }, h("span", { title: text }, text));
  const table = h(
    "table",
    { class: "heat" },
    h("caption", { class: "sr" }, caption),
    h("thead", {}, h("tr", {}, h("td", {}), ...names.map((text) => name(text, "col")))),
    h("tbody", {}, ...names.map((text, i) => h("tr", {}, name(text, "row"), ...names.map((_, j) => cell(i, j))))),
  );
  table.addEventListener("pointerover", ({ target }) => {
    const { i, j } = target.dataset;
    setText(plot.querySelector(".reading"), i ? reading(Number(i), Number(j)) : "\u00a0");
  });
  const frame = plot.querySelector(".plot-frame");
  if (frame) frame.replaceChildren(table); // it stays, and with it how far it is scrolled
  else plot.append(h("div", { class: "plot-frame", tabindex: 0, role: "region", "aria-label": caption }, table), h("p", { class: "reading" }, "\u00a0"), h("p", { class: "scale", "aria-hidden": "true" }));
  const legend = [h("span", {}, least), ...shades.map((one) => h("i", { class: one })), h("span", {}, most)];
  plot.querySelector(".scale").replaceChildren(...legend);
}

function shade(share) {
  return Math.min(SHADES - 1, Math.floor(share * SHADES));
}

/** Counts are far apart, so their steps are those of the logarithm. */
function step(count, most) {
  return Math.min(STEPS - 1, Math.floor((STEPS * Math.log(count)) / Math.log(most + 1)));
}
