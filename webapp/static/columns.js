/**
 * The columns: one, or up to four side by side, each a way through the same conversation with a model of its own.
 *
 * Which ones a conversation has is this browser's business, so it is kept here. In narrow windows one column is in view,
 * and the others are a swipe or a tab away.
 */

import { $, h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";
import { stateText, usable } from "./picker.js";
import { recall, remember } from "./store.js";
import { Thread } from "./thread.js";

const MOST = 4;
const REMEMBERED = 50; // conversations whose columns are kept

export class Columns {
  /** {thread, element, head, model, settings}; model and settings count while there are several. */
  list = [];
  #host;
  #container = $("columns");
  #tabs = $("column-tabs");
  #edited = null; // the column whose settings the panel shows

  constructor(host) {
    this.#host = host;
    this.list.push(this.#make());
    this.#container.append(this.list[0].element);
    this.list[0].scroller.prepend($("hero"));
    this.#container.addEventListener("scroll", () => this.#markTab(), { passive: true });
    $("column-add").addEventListener("click", () => this.add());
  }

  get threads() {
    return this.list.map(({ thread }) => thread);
  }

  get many() {
    return this.list.length > 1;
  }

  /** The model that a column asks, as the server describes it. */
  modelOf(thread) {
    const { picker } = this.#host;
    if (!this.many) return picker.model;
    const name = this.#of(thread)?.model;
    return picker.models.find((model) => model.name === name) ?? (name ? { name, state: "gone" } : picker.model);
  }

  /** What was chosen for what a column asks. */
  choicesOf(thread) {
    const column = this.#of(thread);
    return !this.many || column === this.#edited ? this.#host.settings.choices : (column?.settings ?? this.#host.settings.choices);
  }

  /** One more, with the same messages and another model. */
  async add() {
    if (this.list.length >= MOST) return;
    if (!this.many) Object.assign(this.list[0], { model: this.#host.picker.model?.name ?? "", settings: this.#host.settings.choices });
    const [first] = this.list;
    const taken = new Set(this.list.map(({ model }) => model));
    const free = this.#host.picker.models.find((model) => usable(model) && !taken.has(model.name));
    const column = this.#insert({ model: free?.name ?? first.model, settings: this.choicesOf(first.thread) });
    this.#arranged();
    this.#show(column);
    column.head.querySelector(".column-model").focus({ preventScroll: true });
    if (this.#host.temporary) column.thread.copy(first.thread);
    else if (this.#host.conversation) await this.#open(column, first.thread.leaf);
    this.keep();
  }

  /** Back to one. */
  choose(column) {
    const model = this.modelOf(column.thread);
    const settings = this.choicesOf(column.thread);
    for (const other of this.list) if (other !== column) this.#drop(other);
    this.list = [column];
    this.#edited = null;
    this.#arranged();
    if (usable(model)) this.#host.picker.prefer(model.name);
    this.#host.settings.model = this.#host.picker.model;
    this.#host.settings.show(settings);
    this.keep();
    this.#host.chosen(column.thread);
  }

  /** Leave one away. */
  close(column) {
    const at = this.list.indexOf(column);
    if (this.list.length === 2) return this.choose(this.list[1 - at]);
    if (this.#edited === column) this.#edited = null;
    this.#drop(column);
    this.list.splice(at, 1);
    this.#arranged();
    this.keep();
    (this.list[at] ?? this.list.at(-1)).head.querySelector(".column-model").focus({ preventScroll: true });
  }

  /** As many as this browser has for the conversation, and where each of them ends: one, if it has no more. */
  restore(conversation) {
    const wanted = columnsOf(conversation);
    for (const column of this.list.splice(wanted.length)) this.#drop(column, false);
    while (this.list.length < wanted.length) this.#insert({});
    wanted.forEach(({ model, settings }, i) => Object.assign(this.list[i], { model, settings }));
    this.#edited = null;
    this.#arranged();
    return wanted.map(({ leaf }) => leaf ?? "");
  }

  /** The same after something has happened elsewhere: what is set here stays, if there are as many as before. */
  follow(conversation) {
    const wanted = columnsOf(conversation);
    return this.differs(conversation) ? this.restore(conversation) : wanted.map(({ leaf }) => leaf ?? "");
  }

  /** Whether another tab of this browser has other columns for the conversation. */
  differs(conversation) {
    return columnsOf(conversation).length !== this.list.length;
  }

  /** Remember what there is. */
  keep() {
    const { conversation, temporary } = this.#host;
    if (!conversation || temporary) return;
    const { [conversation]: before, ...others } = recall("columns", {});
    if (!this.many && !before) return;
    const entry = this.many ? { [conversation]: this.list.map(({ thread, model }) => ({ leaf: thread.run?.request_id || thread.leaf, model, settings: this.choicesOf(thread) })) } : {};
    remember("columns", Object.fromEntries([...Object.entries(others).slice(1 - REMEMBERED), ...Object.entries(entry)]));
  }

  /** The models, or what the columns do, have changed. */
  refresh() {
    if (!this.many) return;
    this.list.forEach(({ thread, head }, i) => {
      const model = this.modelOf(thread);
      const name = model?.name ?? t("No model is running");
      const [dot, label] = head.querySelectorAll(".dot, .picker-name");
      dot.dataset.state = model?.state ?? "gone";
      setText(label, name);
      head.querySelector(".column-model").setAttribute("aria-label", t("Model of column {number}: {model}, {state}", { number: i + 1, model: name, state: model ? stateText(model) : "" }));
      head.querySelector(".column-stop").hidden = !thread.run;
      if (this.#tabs.children[i]) setText(this.#tabs.children[i], name);
    });
  }

  #of(thread) {
    return this.list.find((column) => column.thread === thread);
  }

  #insert(what) {
    const column = Object.assign(this.#make(), what);
    this.list.push(column);
    this.#container.append(column.element);
    return column;
  }

  #make() {
    const turns = h("div", { class: "turns" });
    const scroller = h("div", { class: "scroller", tabindex: -1 }, turns);
    const latest = h("button", { class: "latest", type: "button", "aria-label": t("Jump to the latest"), title: t("Jump to the latest"), hidden: true }, icon("latest"));
    const button = (name, label, press, more = "") => h("button", { class: `icon-button small ${more}`, type: "button", "aria-label": label, title: label, onclick: press }, icon(name));
    const model = h("button", { class: "picker column-model", type: "button", "aria-haspopup": "menu", "aria-expanded": "false", onclick: () => this.#pick(column, model) }, h("span", { class: "dot" }), h("span", { class: "picker-name" }), icon("down"));
    const settings = button("sliders", t("Settings of this column"), () => this.#edit(column, settings));
    const head = h(
      "header",
      { class: "column-head", hidden: true },
      model,
      h("span", { class: "bar-gap" }),
      button("stop", t("Stop this answer"), () => column.thread.stop(), "column-stop"),
      settings,
      button("check", t("Keep this one"), () => this.choose(column)),
      button("close", t("Close this column"), () => this.close(column)),
    );
    const element = h("section", { class: "column" }, head, scroller, latest);
    const column = { element, head, scroller, turns };
    column.thread = new Thread(this.#host, { scroller, turns, latest });
    return column;
  }

  async #open(column, leaf) {
    try {
      await column.thread.open({ leaf });
    } catch (error) {
      this.#host.notice(error.message);
    }
  }

  #drop(column, ends = true) {
    this.list.find((other) => other !== column)?.scroller.prepend($("hero")); // the greeting must not go with it
    if (ends) column.thread.stop();
    column.thread.clear();
    column.element.remove();
  }

  async #pick(column, button) {
    const { openMenu } = await import("./menu.js");
    const models = this.#host.picker.models.filter(usable);
    const pick = (name) => {
      column.model = name;
      column.thread.modelsChanged();
      this.refresh();
      this.keep();
    };
    openMenu(button, t("Model of this column"), models.map(({ name }) => ({ label: name, icon: name === column.model ? "check" : "", act: () => pick(name) })));
  }

  /** The panel shows one column's settings at a time. */
  #edit(column, button) {
    const { settings } = this.#host;
    if (this.#edited !== column) {
      if (this.#edited) this.#edited.settings = settings.choices;
      const choices = this.choicesOf(column.thread);
      settings.model = this.modelOf(column.thread);
      settings.show(choices);
      this.#edited = column;
    }
    settings.open(button);
  }

  #arranged() {
    const { many } = this;
    document.body.classList.toggle("many", many);
    this.list.forEach(({ head, element, thread }, i) => {
      head.hidden = !many;
      thread.loud = i === 0;
      if (many) element.setAttribute("aria-label", t("Column {number}", { number: i + 1 }));
      else element.removeAttribute("aria-label");
    });
    this.list[0].scroller.prepend($("hero"));
    this.#tabs.hidden = !many;
    this.#tabs.replaceChildren(...(many ? this.list.map((column) => h("button", { type: "button", onclick: () => this.#show(column) })) : []));
    for (const id of ["picker", "settings-open", "presets-open"]) $(id).hidden = many;
    $("column-add").disabled = this.list.length >= MOST;
    this.refresh();
    this.#markTab();
    this.#host.changed();
  }

  #show(column) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#container.scrollTo({ left: column.element.offsetLeft - this.#container.offsetLeft, behavior: calm ? "instant" : "smooth" });
  }

  #markTab() {
    if (!this.many) return;
    const at = Math.round(this.#container.scrollLeft / this.#container.clientWidth);
    [...this.#tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === at)));
  }
}

/** {leaf, model, settings} of each column that this browser has for a conversation. */
function columnsOf(conversation) {
  const kept = recall("columns", {})[conversation] ?? [];
  return kept.length > 1 ? kept.slice(0, MOST) : [{}];
}
