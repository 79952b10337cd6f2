/** How a question and an answer look on the page, in each of their states. They know no socket and no conversation. */

import { copy, h, icon, setText } from "./dom.js";

const LONG_MESSAGE = 1800; // characters of a question that are shown before "Show all"
const LONG_LINES = 24;
const MEASURABLE_SECONDS = 0.05; // below, a rate would be a guess

/** A question as written: plain text, never Markdown. */
export function questionView(text) {
  const body = h("div", { class: "question-text" }, text);
  const turn = h("article", { class: "turn question" }, h("h2", { class: "sr" }, "You wrote"), body);
  if (text.length > LONG_MESSAGE || text.split("\n").length > LONG_LINES) {
    body.classList.add("folded");
    const button = h("button", { class: "text-button", type: "button", "aria-expanded": "false" }, "Show all");
    button.addEventListener("click", () => {
      const folded = body.classList.toggle("folded");
      button.setAttribute("aria-expanded", String(!folded));
      button.textContent = folded ? "Show all" : "Show less";
    });
    turn.append(button);
  }
  return turn;
}

/** An answer: waiting, growing, finished or failed. `again` writes it anew. */
export class AnswerView {
  #heading = h("h2", { class: "sr" });
  #thoughts = h("div", { class: "thoughts-text" });
  #thoughtsTitle = h("summary", {}, "Thinking…");
  #thinking = h("details", { class: "thoughts", hidden: true }, this.#thoughtsTitle, this.#thoughts);
  #body = h("div", { class: "md" });
  #waitText = h("span", { class: "wait-text" });
  #wait = h("p", { class: "wait" }, h("span", { class: "wait-dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), this.#waitText);
  #problem = h("div", { class: "problem", hidden: true });
  #copy = h("button", { class: "icon-button small", type: "button", "aria-label": "Copy the answer", title: "Copy", hidden: true }, icon("copy"), icon("check"));
  #again = h("button", { class: "icon-button small", type: "button", "aria-label": "Write the answer again", title: "Write again", hidden: true }, icon("again"));
  #mark = h("span", { class: "mark", hidden: true });
  #facts = h("span", { class: "facts" });
  #markdown = null;
  #loading = false;
  #pending = null; // {text, whole} that came before the renderer
  #text = "";
  #model = "";
  element = h(
    "article",
    { class: "turn answer" },
    this.#heading,
    this.#thinking,
    this.#body,
    this.#wait,
    this.#problem,
    h("footer", { class: "turn-foot" }, this.#copy, this.#again, this.#mark, this.#facts),
  );

  constructor(model, again) {
    this.model = model;
    this.#copy.addEventListener("click", () => copy(this.#text, this.#copy));
    this.#again.addEventListener("click", again);
  }

  /** Who writes it; "" while that is not known. */
  get model() {
    return this.#model;
  }

  set model(name) {
    this.#model = name;
    setText(this.#heading, `${name || "The model"} answered`);
  }

  /** Nothing has come yet, or nothing comes for a while; `sentence` says what it waits for. */
  wait(sentence) {
    this.#wait.hidden = false;
    this.element.setAttribute("aria-busy", "true");
    setText(this.#waitText, sentence);
  }

  /** The text so far. */
  grow(text, reasoning) {
    this.#text = text;
    this.element.classList.add("growing");
    this.element.setAttribute("aria-busy", "true");
    this.#reason(reasoning, !text);
    this.#wait.hidden = true;
    this.#render(text, false);
  }

  /** The whole answer. `end` has reason, usage, timings and error, as far as they are known. */
  finish(text, reasoning, end) {
    this.#text = text;
    this.#wait.hidden = true;
    this.element.classList.remove("growing");
    this.element.removeAttribute("aria-busy");
    this.#reason(reasoning, false);
    this.#render(text, true);
    this.#copy.hidden = !text;
    this.#again.hidden = false;
    const mark = MARKS[end.reason]?.(text) ?? "";
    this.#mark.hidden = !mark;
    setText(this.#mark, mark);
    setText(this.#facts, facts(this.model, end));
    if (end.error) this.fail(end.error.message, [["Try again", () => this.#again.click()]]);
  }

  /** What went wrong, in place of (the rest of) the answer. `actions` are pairs of a label and what it does. */
  fail(message, actions) {
    this.#wait.hidden = true;
    this.element.classList.remove("growing");
    this.element.removeAttribute("aria-busy");
    this.#problem.hidden = false;
    this.#problem.replaceChildren(
      icon("alert"),
      h("p", {}, message),
      h("div", { class: "problem-actions" }, ...actions.map(([label, act]) => h("button", { class: "button", type: "button", onclick: act }, label))),
    );
    this.#again.hidden = true;
  }

  /** Whether it may be written again: only the last answer may, while nothing else is under way. */
  set last(yes) {
    this.element.classList.toggle("last", yes);
  }

  #reason(reasoning, open) {
    this.#thinking.hidden = !reasoning;
    this.#thinking.classList.toggle("live", open);
    setText(this.#thoughtsTitle, open ? "Thinking…" : "Thoughts");
    setText(this.#thoughts, reasoning);
  }

  #render(text, whole) {
    if (this.#markdown) {
      if (whole) this.#markdown.finish(text);
      else this.#markdown.set(text);
      return;
    }
    if (!text) return;
    // Until the renderer is there, and if it cannot be loaded: the plain text.
    this.#body.textContent = text;
    this.#pending = { text, whole };
    if (this.#loading) return;
    this.#loading = true;
    const ready = ({ LiveMarkdown }) => {
      this.#markdown = new LiveMarkdown(this.#body);
      this.#render(this.#pending.text, this.#pending.whole);
    };
    loadMarkdown().then(ready, () => (this.#loading = false));
  }
}

let markdown = null;

/** The Markdown renderer, fetched once, beside everything else: an empty page does not wait for it. */
export function loadMarkdown() {
  markdown ??= import("./markdown.js").catch(() => {
    markdown = null;
    throw new Error("A part of this page could not be loaded. Check your connection, then reload the page.");
  });
  return markdown;
}

const MARKS = {
  cancelled: (text) => (text ? "Stopped" : "Stopped before it began"),
  abandoned: () => "Stopped",
  length: () => "Ended at the token limit",
};

function facts(model, { usage, timings }) {
  const { completion_tokens: tokens } = usage ?? {};
  const { waited, first, total } = timings ?? {};
  const parts = [model];
  if (tokens) parts.push(`${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
  const seconds = total - (first ?? waited ?? 0);
  if (tokens > 1 && seconds > MEASURABLE_SECONDS) parts.push(`${decimal((tokens - 1) / seconds)} tokens/s`);
  if (first != null) parts.push(`first after ${first < 1 ? `${Math.ceil(1000 * first)} ms` : `${decimal(first)} s`}`);
  return parts.filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // breaks only between the facts
}

function decimal(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}
