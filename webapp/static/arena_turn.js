/** A turn of a round: a question and, side by side, its two answers. */

import { AnswerView } from "./answer.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { QuestionView } from "./question.js";

export const SIDES = ["a", "b"];
export const LABELS = { a: t("Model A"), b: t("Model B") };

/** One side's answer in one turn. */
class SideView {
  #parts = []; // {kind, text} by the frames' numbers
  #name;
  view;
  element;
  end = null; // {reason, usage, timings} once it is whole

  constructor(side, name) {
    this.element = h("div", { class: "side", "data-side": side });
    this.#name = name;
    this.empty();
  }

  /** What it is called now. */
  set name(name) {
    this.view.model = this.#name = name;
  }

  /** Nothing was said yet. */
  empty() {
    this.#parts = [];
    this.end = null;
    this.view = new AnswerView(this.#name, () => {}, { plain: true });
    this.view.wait("");
    this.element.replaceChildren(this.view.element);
  }

  get text() {
    return this.#of("text");
  }

  get #content() {
    return { text: this.text, reasoning: this.#of("reasoning") };
  }

  /** A frame of it; a number below the last takes the place of what was there. */
  take({ seq, text, kind = "text", end, reason, usage, timings }) {
    this.#parts.length = Math.min(seq, this.#parts.length);
    this.#parts.push({ kind, text });
    if (end) return this.finish({ reason, usage, timings });
    if (text) this.view.grow(this.#content);
  }

  /** What the server has of it. */
  restore({ text, reasoning = "", done, ...end }) {
    if (this.end && text !== this.text) this.empty(); // of one that was stopped there may be more
    this.#parts = [{ kind: "reasoning", text: reasoning }, { kind: "text", text }];
    this.finish({ reason: done ? "stop" : "cancelled", ...end });
  }

  /** Nothing more comes. */
  finish(end) {
    this.end = end;
    this.view.finish(this.#content, end);
  }

  #of(kind) {
    return this.#parts.filter((part) => part?.kind === kind).map((part) => part.text).join("");
  }
}

/** A turn. It knows neither the round nor whoever sends its frames. */
export class TurnView {
  text;
  sides;
  element;

  /** `names`: what its sides are called, [a, b]. */
  constructor(text, names) {
    this.text = text;
    this.sides = Object.fromEntries(SIDES.map((side, i) => [side, new SideView(side, names[i])]));
    const question = new QuestionView({ text }, () => {}, { plain: true });
    this.element = h("section", { class: "bout" }, question.element, h("div", { class: "pair" }, ...SIDES.map((side) => this.sides[side].element)));
  }

  /** Whether both answers are whole. */
  get ended() {
    return SIDES.every((side) => this.sides[side].end);
  }

  /** What its sides are called now. */
  set names(names) {
    SIDES.forEach((side, i) => (this.sides[side].name = names[i]));
  }

  /** What the server has of both: {a, b}; null for what has not come to its end. */
  restore(shown) {
    for (const side of SIDES) if (shown[side]) this.sides[side].restore(shown[side]);
  }

  /** Nothing more comes of what is not whole. */
  cut(reason = "cancelled") {
    for (const side of SIDES) if (!this.sides[side].end) this.sides[side].finish({ reason });
  }

  /** Both are to be answered again. */
  renew() {
    for (const side of SIDES) this.sides[side].empty();
  }
}
