/** How an answer looks in each of its states: waiting, growing, finished, failed. It knows no socket and no conversation. */

import { copy, h, icon, setText } from "./dom.js";
import { n, number, t, told } from "./i18n.js";
import { Versions } from "./versions.js";

const MEASURABLE_SECONDS = 0.05; // below, a rate would be a guess
const THOUGHT_SECONDS = 1; // shorter thoughts have no duration

/**
 * An answer. `act(what, detail)` does what its buttons say: again, more (button), continue, rate (rating, button), turn
 * (step); a `plain` one has none but that which copies it. What it shows, its `content`, is {text, reasoning, calls: [{name, text}], thought: seconds}.
 */
export class AnswerView {
  #heading = h("h2", { class: "sr" });
  #thoughts = h("div", { class: "thoughts-text" });
  #thoughtsTitle = h("summary", {}, t("Thinking…"));
  #thinking = h("details", { class: "thoughts", hidden: true }, this.#thoughtsTitle, this.#thoughts);
  #calls = h("div", { class: "calls", hidden: true });
  #body = h("div", { class: "md" });
  #waitText = h("span", { class: "wait-text" });
  #wait = h("p", { class: "wait", hidden: true }, h("span", { class: "wait-dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), this.#waitText);
  #problem = h("div", { class: "problem", hidden: true });
  #versions = new Versions((step) => this.#act("turn", step));
  #copy = button(["copy", "check"], t("Copy the answer"), () => copy(this.text, this.#copy));
  #again = button(["again"], t("Write the answer again"), () => this.#act("again"));
  #more = button(["dots"], t("More"), () => this.#act("more", this.#more));
  #continue = h("button", { class: "text-button act", type: "button", hidden: true, onclick: () => this.#act("continue") }, t("Continue"));
  #ratings = ["up", "down", "flag"].map((rating) => {
    const one = button([ICONS[rating]], RATINGS[rating], () => this.#act("rate", { rating, button: one }));
    one.setAttribute("aria-pressed", "false");
    one.dataset.rating = rating;
    return one;
  });
  #mark = h("span", { class: "mark", hidden: true });
  #facts = h("span", { class: "facts" });
  #markdown = null;
  #loading = false;
  #pending = null; // {text, whole} that came before the renderer
  #shownCalls = "";
  #act;
  #model = "";
  text = "";
  element = h(
    "article",
    { class: "turn answer" },
    this.#heading,
    this.#thinking,
    this.#calls,
    this.#body,
    this.#wait,
    this.#problem,
    h("footer", { class: "turn-foot" }, this.#versions.element, this.#copy, this.#again, ...this.#ratings, this.#more, this.#continue, this.#mark, this.#facts),
  );

  constructor(model, act, { plain = false } = {}) {
    this.#act = act;
    this.model = model;
    this.#more.setAttribute("aria-haspopup", "menu");
    this.#copy.dataset.act = "copy";
    this.#again.dataset.act = "again";
    for (const one of [this.#again, this.#more, ...this.#ratings]) {
      one.classList.add("act");
      if (plain) one.remove();
    }
  }

  /** Who writes it; "" while that is not known. */
  get model() {
    return this.#model;
  }

  set model(name) {
    this.#model = name;
    setText(this.#heading, name ? t("{model} answered", { model: name }) : t("The model answered"));
  }

  /** Which of its versions it is. */
  set versions({ at, count }) {
    this.#versions.show(at, count);
  }

  /** up, down, flag, or "" */
  set rating(value) {
    for (const one of this.#ratings) one.setAttribute("aria-pressed", String(one.dataset.rating === value));
  }

  /** Whether its model can go on where it ended. */
  set continuable(yes) {
    this.#continue.hidden = !yes;
  }

  /** Whether it is the last one: its buttons stay in sight. */
  set last(yes) {
    this.element.classList.toggle("last", yes);
  }

  /** Put the focus on the arrow that was pressed to get here. */
  focusVersions(step) {
    this.#versions.focus(step);
  }

  /** Nothing has come yet, or nothing comes for a while; `sentence` says what it waits for. */
  wait(sentence) {
    this.#wait.hidden = false;
    this.element.setAttribute("aria-busy", "true");
    setText(this.#waitText, sentence);
  }

  /** What is there so far. */
  grow(content) {
    // Only what differs: any attribute that is set costs a frame, and this comes forty times a second.
    if (!this.element.classList.contains("growing") || !this.#wait.hidden) {
      this.element.classList.add("growing");
      this.element.setAttribute("aria-busy", "true");
      this.#wait.hidden = true;
    }
    this.#fill(content, false);
  }

  /** The whole answer. `end` has reason, usage, timings and error, as far as they are known. */
  finish(content, end) {
    this.#settle();
    this.element.classList.add("done");
    this.#fill({ ...content, thought: end.timings?.reasoning ?? content.thought }, true);
    this.#copy.hidden = !content.text;
    const mark = markOf(end.reason, content.text);
    this.#mark.hidden = !mark;
    setText(this.#mark, mark);
    setText(this.#facts, facts(this.model, end));
    if (end.error) this.fail(told(end.error), [[t("Try again"), () => this.#act("again")]]);
  }

  /** What went wrong, in place of (the rest of) the answer. `actions` are pairs of a label and what it does. */
  fail(message, actions) {
    this.#settle();
    this.#problem.hidden = false;
    this.#problem.replaceChildren(
      icon("alert"),
      h("p", {}, message),
      h("div", { class: "problem-actions" }, ...actions.map(([label, act]) => h("button", { class: "button", type: "button", onclick: act }, label))),
    );
    this.#again.hidden = true;
  }

  #settle() {
    this.#wait.hidden = true;
    this.element.classList.remove("growing");
    this.element.removeAttribute("aria-busy");
  }

  #fill({ text, reasoning = "", calls = [], thought = 0 }, whole) {
    this.text = text;
    const thinking = !whole && !text && !calls.length;
    if (this.#thinking.hidden === Boolean(reasoning)) this.#thinking.hidden = !reasoning;
    this.#thinking.classList.toggle("live", thinking);
    setText(this.#thoughtsTitle, thinking ? t("Thinking…") : thought >= THOUGHT_SECONDS ? t("Thought for {time}", { time: duration(thought) }) : t("Thoughts"));
    setText(this.#thoughts, reasoning);
    this.#fillCalls(calls);
    this.#render(text, whole);
  }

  #fillCalls(calls) {
    const state = calls.map(({ name, text }) => `${name} ${text.length}`).join();
    if (state === this.#shownCalls) return;
    this.#shownCalls = state;
    this.#calls.hidden = !calls.length;
    const open = [...this.#calls.children].map((call) => call.open);
    this.#calls.replaceChildren(
      ...calls.map(({ name, text }, i) =>
        h("details", { class: "call", open: open[i] }, h("summary", {}, icon("tool"), h("span", {}, t("Calls {name}", { name }))), h("pre", { tabindex: 0 }, pretty(text))),
      ),
    );
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

/** The content of a stored answer. */
export function contentOf(parts) {
  const texts = (kind) => parts.filter((part) => part.kind === kind).map((part) => part.text).join("");
  return { text: texts("text"), reasoning: texts("reasoning"), calls: parts.filter((part) => part.kind === "tool") };
}

// The renderer and what it imports: all at once, not one after the other as each is read.
const MARKDOWN = ["markdown", "controls", "emphasis", "flavour", "footnotes", "math", "tables", "tasks", "vendor/dompurify/purify.min", "vendor/markdown-it/markdown-it.esm.min"].map((name) => `./${name}.js`);

let markdown = null;

/** The Markdown renderer, fetched once, beside everything else: an empty page does not wait for it. */
export function loadMarkdown() {
  markdown ??= Promise.all(MARKDOWN.map((part) => import(part))).then(([module]) => module, () => {
    markdown = null;
    throw new Error(t("A part of this page could not be loaded. Check your connection, then reload the page."));
  });
  return markdown;
}

const ICONS = { up: "up", down: "down-thumb", flag: "flag" };
const RATINGS = { up: t("Good answer"), down: t("Bad answer"), flag: t("Flag this answer") };

function button(icons, label, press) {
  return h("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, onclick: press }, ...icons.map(icon));
}

function markOf(reason, text) {
  if (reason === "cancelled") return text ? t("Stopped") : t("Stopped before it began");
  if (reason === "abandoned") return t("Stopped");
  if (reason === "withheld") return t("Not shown");
  return reason === "length" ? t("Ended at the token limit") : "";
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it is still being written, or no JSON
  }
}

function facts(model, { usage, timings }) {
  const { completion_tokens: tokens } = usage ?? {};
  const { waited, first, total } = timings ?? {};
  const parts = [model];
  if (tokens) parts.push(n("{count} token", "{count} tokens", tokens));
  const seconds = total - (first ?? waited ?? 0);
  if (tokens > 1 && seconds > MEASURABLE_SECONDS) parts.push(t("{rate} tokens/s", { rate: decimal((tokens - 1) / seconds) }));
  if (first != null) parts.push(t("first after {time}", { time: duration(first) }));
  if (total) parts.push(t("{time} in all", { time: duration(total) }));
  return parts.filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // breaks only between the facts
}

function duration(seconds) {
  if (seconds < 1) return t("{count} ms", { count: Math.ceil(1000 * seconds) });
  if (seconds < 60) return t("{count} s", { count: number(seconds, seconds < 10 ? 1 : 0) });
  return t("{minutes} min {seconds} s", { minutes: Math.floor(seconds / 60), seconds: Math.round(seconds % 60) });
}

function decimal(value) {
  return number(value, value >= 100 ? 0 : 1);
}
