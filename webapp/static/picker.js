/**
 * The model picker: a button that opens a listbox, kept up to date while it is open.
 *
 * Comes in: the server's list of models, whenever it changes. Goes out: `model`, the one to ask. What a person chose
 * stays chosen, even when its worker goes, and says so; what was chosen for them gives way to one that is ready.
 */

import { $, h, placeUnder, setText } from "./dom.js";
import { number, t } from "./i18n.js";
import { recall, remember } from "./store.js";

const TYPING_MS = 700;

/** Whether it takes questions now. */
export function usable(model) {
  return model?.state === "ready" || model?.state === "loading";
}

/** A model's state in a word or two, where there is little room. */
function shortState(model) {
  return model.state === "ready" && model.waiting ? t("{count} waiting", { count: number(model.waiting) }) : stateText(model);
}

/** A model's state in words. */
export function stateText({ state, progress, waiting }) {
  if (state === "loading") return t("loading {progress} %", { progress: progress || 0 });
  if (state === "ready") return waiting ? t("ready, {count} waiting", { count: number(waiting) }) : t("ready");
  return state === "failed" ? t("failed") : t("gone");
}

export class Picker {
  models = [];
  #button = $("picker");
  #panel = $("models-panel");
  #list = $("models");
  #options = new Map(); // name -> the parts of its option
  #name = "";
  #chosen = false; // by a person, on this page
  #known = false;
  #active = "";
  #typed = "";
  #typedAt = 0;
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
    this.#panel.addEventListener("toggle", (event) => this.#toggled(event.newState === "open"));
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("click", (event) => this.#choose(event.target.closest("[role=option]")?.dataset.name));
    this.#list.addEventListener("pointermove", (event) => {
      const name = event.target.closest("[role=option]")?.dataset.name;
      if (name && name !== this.#active) this.#activate(name, false);
    });
  }

  /** The chosen model as the server describes it; null if there is none. */
  get model() {
    return this.models.find((model) => model.name === this.#name) ?? (this.#name ? { name: this.#name, state: "gone" } : null);
  }

  /** Whether the first list has come. */
  get known() {
    return this.#known;
  }

  /** The server's news. */
  update(models) {
    const chats = models.filter((model) => model.kind === "chat");
    if (!this.#known) {
      const last = recall("model", "");
      this.#chosen = chats.some((model) => model.name === last && usable(model));
      if (this.#chosen) this.#name = last;
    }
    this.#known = true;
    this.models = chats;
    if (!this.#chosen && !(this.model?.state === "ready")) {
      const next = chats.find((model) => model.state === "ready") ?? chats.find(usable) ?? chats.find((model) => model.state === "failed");
      if (next && (usable(next) || !usable(this.model))) this.#name = next.name;
      else if (!usable(this.model)) this.#name = "";
    }
    this.#show();
  }

  /** A conversation was opened that this model answered last: go on with it, if it is there. */
  prefer(name) {
    if (name === this.#name || !usable(this.models.find((model) => model.name === name))) return;
    this.#name = name;
    this.#show();
  }

  // A model whose workers have all gone leaves the list; if it is the chosen one, it stays to say so.
  get #listed() {
    return this.models.filter((model) => model.state !== "gone" || model.name === this.#name);
  }

  #show() {
    const model = this.model;
    setText($("picker-name"), model?.name ?? t("No model is running"));
    setText($("picker-state"), model ? shortState(model) : "");
    $("picker-dot").dataset.state = model?.state ?? "gone";
    this.#button.setAttribute("aria-label", model ? t("Model: {name}, {state}", { name: model.name, state: stateText(model) }) : t("No model is running"));
    this.#fill();
    this.#onchange();
  }

  #fill() {
    const listed = this.#listed;
    const names = new Set(listed.map((model) => model.name));
    for (const [name, option] of this.#options) {
      if (names.has(name)) continue;
      option.element.remove();
      this.#options.delete(name);
    }
    listed.forEach((model, i) => {
      let option = this.#options.get(model.name);
      if (!option) {
        option = newOption(model.name);
        this.#options.set(model.name, option);
      }
      if (this.#list.children[i] !== option.element) this.#list.insertBefore(option.element, this.#list.children[i] ?? null);
      fillOption(option, model, model.name === this.#name);
    });
    $("models-empty").hidden = listed.length > 0;
    this.#list.hidden = listed.length === 0;
    if (this.#active && !names.has(this.#active)) this.#activate(listed[0]?.name ?? "", false);
  }

  #toggled(open) {
    this.#button.setAttribute("aria-expanded", String(open));
    if (!open) this.#activate("", false);
    else if (!this.#active) this.#opened();
  }

  #opened() {
    placeUnder(this.#panel, this.#button);
    this.#list.focus();
    this.#activate(this.#options.has(this.#name) ? this.#name : (this.#listed[0]?.name ?? ""), true);
  }

  #activate(name, scroll) {
    this.#options.get(this.#active)?.element.classList.remove("active");
    this.#active = name;
    const option = this.#options.get(name)?.element;
    option?.classList.add("active");
    if (option) this.#list.setAttribute("aria-activedescendant", option.id);
    else this.#list.removeAttribute("aria-activedescendant");
    if (scroll) option?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const names = this.#listed.map((model) => model.name);
    const at = names.indexOf(this.#active);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: names.length - 1, PageDown: at + 5, PageUp: at - 5 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.#activate(names[Math.min(names.length - 1, Math.max(0, to))], true);
    } else if (event.key === "Enter" || (event.key === " " && !this.#typing)) {
      event.preventDefault();
      this.#choose(this.#active);
    } else if (event.key === "Tab") {
      this.#panel.hidePopover();
    } else if (event.key.length === 1) {
      this.#type(event.key.toLowerCase(), names);
    }
  }

  get #typing() {
    return this.#typed && performance.now() - this.#typedAt < TYPING_MS;
  }

  #type(letter, names) {
    this.#typed = this.#typing ? this.#typed + letter : letter;
    this.#typedAt = performance.now();
    const from = names.indexOf(this.#active) + (this.#typed.length === 1 ? 1 : 0);
    const found = [...names.slice(from), ...names.slice(0, from)].find((name) => name.toLowerCase().startsWith(this.#typed));
    if (found) this.#activate(found, true);
  }

  #choose(name) {
    const model = this.models.find((candidate) => candidate.name === name);
    if (!usable(model)) return;
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
  };
  const top = h("div", { class: "option-top" }, parts.dot, h("span", { class: "option-name" }, name), parts.state);
  parts.element = h("li", { class: "option", role: "option", id: `model-${++count}`, "data-name": name }, top, parts.progress, parts.text, parts.facts);
  return parts;
}

function fillOption({ element, dot, state, text, progress, facts }, model, selected) {
  element.setAttribute("aria-selected", String(selected));
  element.setAttribute("aria-disabled", String(!usable(model)));
  dot.dataset.state = model.state;
  setText(state, stateText(model));
  progress.hidden = model.state !== "loading";
  progress.value = model.progress || 0;
  setText(text, model.state === "failed" ? model.why || t("It could not be loaded.") : model.description || "");
  setText(facts, modelFacts(model));
}

function modelFacts({ parent, context, licence, workers }) {
  const parts = [];
  if (parent) parts.push(t("on {parent}", { parent }));
  if (context) parts.push(t("{count} tokens of context", { count: number(context) }));
  if (workers > 1) parts.push(t("{count} workers", { count: number(workers) }));
  if (licence) parts.push(licence);
  return parts.join(" · ");
}
