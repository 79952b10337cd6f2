/** Figures with a line for each model: its name, a drawing on a common scale, and the numbers. Read as the list that they are. */

import { h } from "./dom.js";
import { number, t } from "./i18n.js";
import { percent, svg, ticks } from "./svg.js";

const FEW = 25; // lines that are there before one asks for more
const ROOM = 0.04; // at both ends of a scale

/** The score of each model with its interval. */
export function intervals(plot, { models }, state) {
  const sure = models.filter((model) => !model.preliminary); // intervals of a few votes are wide
  const [low, high] = around(sure.length ? sure : models);
  const at = percent(low, high);
  const marks = ticks(low, high, 5).map((value) => ({ at: at(value), text: number(value) }));
  show(plot, state, models, marks, {
    draw: ({ score, lower, upper, preliminary }) => [
      svg("line", { class: preliminary ? "range unsure" : "range", x1: at(lower), x2: at(upper), y1: "50%", y2: "50%" }),
      svg("circle", { class: "point", cx: at(score), cy: "50%", r: 4.5 }),
    ],
    text: ({ score, lower, upper }) => [
      h("b", {}, number(score)),
      ` +${number(upper - score)}/−${number(score - lower)}`,
    ],
  });
}

/** How often each model wins against the others. */
export function average(plot, { models }, state) {
  const marks = [0, 0.25, 0.5, 0.75, 1].map((value) => ({ at: `${100 * value}%`, text: `${100 * value} %`, middle: value === 0.5 }));
  show(plot, state, [...models].sort((a, b) => b.average_win_rate - a.average_win_rate), marks, {
    draw: ({ average_win_rate: rate }) => [svg("rect", { class: "bar", width: `${100 * rate}%`, y: "18%", height: "64%", rx: 3 })],
    text: ({ average_win_rate: rate }) => [h("b", {}, `${number(100 * rate, 1)} %`)],
  });
}

function show(plot, state, models, marks, { draw, text }) {
  const shown = state.all ? models : models.slice(0, FEW);
  const grid = () => marks.map(({ at, middle }) => svg("line", { class: middle ? "grid middle" : "grid", x1: at, x2: at, y1: 0, y2: "100%" }));
  const line = (model) =>
    h(
      "li",
      {},
      h("span", { class: "bar-name", title: model.name }, model.name),
      svg("svg", { class: "chart", "aria-hidden": "true" }, ...grid(), ...draw(model)),
      h("span", { class: "bar-value" }, ...text(model)),
    );
  const axis = svg("svg", { class: "chart axis", "aria-hidden": "true" });
  axis.append(...marks.map(({ at, text: label }) => svg("text", { class: "tick", x: at, y: "1em", "text-anchor": "middle" }, label)));
  const turn = () => {
    state.all = !state.all;
    show(plot, state, models, marks, { draw, text });
    plot.querySelector(".text-button").focus();
  };
  const more = h("button", { class: "text-button", type: "button", onclick: turn }, state.all ? t("Only the first {count}", { count: FEW }) : t("Show all {count} models", { count: number(models.length) }));
  plot.replaceChildren(h("ol", { class: "bars" }, ...shown.map(line), h("li", { class: "bars-axis", "aria-hidden": "true" }, axis)));
  if (models.length > FEW) plot.append(more);
}

function around(models) {
  const low = Math.min(...models.map((model) => model.lower));
  const high = Math.max(...models.map((model) => model.upper));
  const room = ROOM * (high - low || 1);
  return [low - room, high + room];
}
