/**
 * The model picker: a button that opens a list with a search field, kept up to date while it is open.
 *
 * Comes in: the server's list of models, whenever it changes. Goes out: `model`, the one to ask. What a person chose
 * stays chosen, even when its worker goes, and says so; what was chosen for them gives way to one that is ready.
 */

import { $, h, placeUnder, setText } from "./dom.js";
import { n, number, t } from "./i18n.js";
import { recall, remember } from "./store.js";

const LONG_WAIT = 2; // seconds; a shorter one is not worth a word
const PAGE = 5; // options

/** Whether it takes questions now. */
export function usable(model) {
  return model?.state === "ready" || model?.state === "loading";
}

/** A model's state in words. */
export function stateText({ state, progress, waiting }) {
  const words = { ready: t("ready"), failed: t("failed"), gone: t("gone") };
  if (state === "loading") return t("loading {progress} %", { progress: progress || 0 });
  if (state === "ready" && waiting) return t("ready, {waiting}", { waiting: waitingText(waiting) });
  return words[state] ?? state;
}

function waitingText(waiting) {
  return n("{count} waiting", "{count} waiting", waiting);
}

export class Picker {
  models = [];
  #button = $("picker");
  #panel = $("models-panel");
  #list = $("models");
  #box = $("models-find");
  #options = new Map(); // name -> the parts of its option
  #shown = []; // names, as they are listed
  #name = "";
  #chosen = false; // by a person, on this page
  #known = false;
  #preferred = ""; // before the models were known
  #active = "";
  #onchange;

  /** `onchange()` is called when the model, or what is known of it, has changed. */
  constructor(onchange) {
    this.#onchange = onchange;
    this.#button.popoverTargetElement = this.#panel;
    this.#button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
      event.preventDefault();
      this.#panel.showPopover();
      this.#opened(); // at once: the toggle event comes later than a quick next key
    });
    // Closing, before it closes: a list that is opened again at once has only one toggle event for both.
    this.#panel.addEventListener("beforetoggle", ({ newState }) => newState === "closed" && this.#closed());
    this.#panel.addEventListener("toggle", ({ newState }) => {
      this.#button.setAttribute("aria-expanded", String(newState === "open"));
      if (newState === "open" && !this.#active) this.#opened();
    });
    this.#panel.addEventListener("keydown", (event) => this.#key(event));
    this.#box.addEventListener("input", () => this.#search());
    this.#list.addEventListener("click", (event) => this.#choose(event.target.closest("[role=option]")?.dataset.name));
    this.#list.addEventListener("pointermove", (event) => {
      const name = event.target.closest("[role=option]")?.dataset.name;
      if (name && name !== this.#active) this.#activate(name);
    });
  }

  /** The chosen model as the server describes it; null if there is none. */
  get model() {
    return this.find(this.#name) ?? (this.#name ? { name: this.#name, state: "gone" } : null);
  }

  /** Whether the first list has come. */
  get known() {
    return this.#known;
  }

  /** The model of this name as the server describes it, or undefined. */
  find(name) {
    return this.models.find((model) => model.name === name);
  }

  /** The server's news. */
  update(models) {
    this.models = models.filter((model) => model.kind === "chat");
    if (!this.#known) {
      const last = recall("model", "");
      this.#chosen = usable(this.find(last));
      if (this.#chosen) this.#name = last;
      if (usable(this.find(this.#preferred))) this.#name = this.#preferred;
    }
    this.#known = true;
    if (!this.#chosen && !(this.model?.state === "ready")) {
      const next = this.models.find((model) => model.state === "ready") ?? this.models.find(usable) ?? this.models.find((model) => model.state === "failed");
      if (next && (usable(next) || !usable(this.model))) this.#name = next.name;
      else if (!usable(this.model)) this.#name = "";
    }
    this.#show();
  }

  /** A conversation was opened that this model answered last, or a link named it: go on with it, if it is there. */
  prefer(name) {
    this.#preferred = name;
    if (name === this.#name || !usable(this.find(name))) return;
    this.#name = name;
    this.#show();
  }

  // A model whose workers have all gone leaves the list; if it is the chosen one, it stays to say so.
  get #listed() {
    return this.models.filter((model) => model.state !== "gone" || model.name === this.#name);
  }

  #show() {
    const { model } = this;
    setText($("picker-name"), model?.name ?? t("No model is running"));
    const state = !model ? "" : model.state === "ready" && model.waiting ? waitingText(model.waiting) : stateText(model);
    setText($("picker-state"), state);
    $("picker-dot").dataset.state = model?.state ?? "gone";
    this.#button.setAttribute("aria-label", model ? t("Model: {model}, {state}", { model: model.name, state }) : t("Model: none is running"));
    this.#fill();
    this.#onchange();
  }

  #fill() {
    const listed = this.#listed;
    const words = this.#box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const names = new Set(listed.map((model) => model.name));
    for (const [name, option] of this.#options) {
      if (names.has(name)) continue;
      option.element.remove();
      this.#options.delete(name);
    }
    this.#shown = [];
    listed.forEach((model, i) => {
      let option = this.#options.get(model.name);
      if (!option) {
        option = newOption(model.name);
        this.#options.set(model.name, option);
      }
      if (this.#list.children[i] !== option.element) this.#list.insertBefore(option.element, this.#list.children[i] ?? null);
      const text = `${model.name} ${model.description ?? ""} ${model.organisation ?? ""}`.toLowerCase();
      const found = words.every((word) => text.includes(word));
      option.element.hidden = !found;
      if (found) this.#shown.push(model.name);
      fillOption(option, model, model.name === this.#name);
    });
    $("models-empty").hidden = listed.length > 0;
    $("models-search").hidden = listed.length === 0;
    this.#list.hidden = this.#shown.length === 0;
    setText($("models-none"), listed.length && !this.#shown.length ? t("No model matches “{text}”.", { text: this.#box.value.trim() }) : "");
    if (this.#active && !this.#shown.includes(this.#active)) this.#activate(this.#shown[0] ?? "");
  }

  #search() {
    this.#fill();
    this.#activate(this.#shown[0] ?? "", true);
  }

  #closed() {
    this.#box.value = "";
    this.#fill();
    this.#activate("");
  }

  #opened() {
    placeUnder(this.#panel, this.#button);
    // On a phone the keyboard would cover the list.
    (matchMedia("(pointer: fine)").matches && this.#shown.length ? this.#box : this.#list).focus();
    this.#activate(this.#options.has(this.#name) ? this.#name : (this.#shown[0] ?? ""), true);
  }

  /** `moved`: by a key, and not by a pointer that is on its way to somewhere else. */
  #activate(name, moved = false) {
    this.#options.get(this.#active)?.element.classList.remove("active");
    this.#active = name;
    const option = this.#options.get(name)?.element;
    option?.classList.add("active");
    for (const element of [this.#box, this.#list]) {
      if (option) element.setAttribute("aria-activedescendant", option.id);
      else element.removeAttribute("aria-activedescendant");
    }
    if (!moved) return;
    option?.scrollIntoView({ block: "nearest" });
    this.#about(this.find(name));
  }

  /** Where more is to be read; not in the list, whose options can hold no links. */
  #about(model) {
    const about = $("models-about");
    about.hidden = !/^https?:/.test(model?.link ?? "");
    if (about.hidden) return;
    about.replaceChildren(h("a", { href: model.link, target: "_blank", rel: "noreferrer noopener" }, t("About {model} at {place}", { model: model.name, place: new URL(model.link).host })));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.target.closest("a, button")) return;
    const at = this.#shown.indexOf(this.#active);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + PAGE, PageUp: at - PAGE }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.#activate(this.#shown[Math.min(this.#shown.length - 1, Math.max(0, to))] ?? "", true);
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.#choose(this.#active);
    } else if (event.key === "Tab" && $("models-about").hidden) {
      this.#panel.hidePopover();
    }
  }

  #choose(name) {
    if (!usable(this.find(name))) return;
    this.#name = name;
    this.#chosen = true;
    remember("model", name);
    this.#panel.hidePopover();
    this.#button.focus();
    this.#show();
  }
}

let count = 0;

function newOption(name) {
  const parts = {
    dot: h("span", { class: "dot" }),
    state: h("span", { class: "option-state" }),
    text: h("p", { class: "option-text" }),
    progress: h("progress", { max: 100, "aria-hidden": "true", hidden: true }),
    facts: h("p", { class: "option-facts" }),
    load: h("p", { class: "option-facts" }),
  };
  const top = h("div", { class: "option-top" }, parts.dot, h("span", { class: "option-name" }, name), parts.state);
  parts.element = h("li", { class: "option", role: "option", id: `model-${++count}`, "data-name": name }, top, parts.progress, parts.text, parts.facts, parts.load);
  return parts;
}

function fillOption({ element, dot, state, text, progress, facts, load }, model, selected) {
  element.setAttribute("aria-selected", String(selected));
  element.setAttribute("aria-disabled", String(!usable(model)));
  dot.dataset.state = model.state;
  setText(state, stateText(model));
  progress.hidden = model.state !== "loading";
  progress.value = model.progress || 0;
  setText(text, model.state === "failed" ? model.why || t("It could not be loaded.") : model.description || "");
  setText(facts, modelFacts(model));
  setText(load, model.state === "ready" ? loadFacts(model) : "");
}

/** What it is. */
function modelFacts({ parent, organisation, context, licence }) {
  return [organisation, context && t("{context} context", { context: shortCount(context) }), licence, parent && t("on {model}", { model: parent })].filter(Boolean).join(" · ");
}

/** How it does now. */
function loadFacts({ workers, tokens_per_s, first_s, wait_s }) {
  return [
    workers > 1 && n("{count} worker", "{count} workers", workers),
    tokens_per_s >= 1 && t("{count} tokens/s", { count: number(tokens_per_s) }),
    first_s > 0 && t("first word after {seconds} s", { seconds: number(first_s, 1) }),
    wait_s > LONG_WAIT && t("about {seconds} s to wait", { seconds: number(wait_s) }),
  ]
    .filter(Boolean)
    .join(" · ");
}

/** 32768 as 32k, the way that people speak of contexts. */
function shortCount(tokens) {
  if (tokens < 1000) return number(tokens);
  const unit = tokens % 1024 === 0 ? 1024 : 1000;
  return tokens < unit * 1000 ? `${number(Math.round(tokens / unit))}k` : `${number(tokens / unit ** 2, 1)}M`;
}
