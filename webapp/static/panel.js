/**
 * The panel of the answer settings: built when it is first opened, so it costs nothing before.
 *
 * Every control is one entry of a table; what was chosen is marked, and what is left empty is as the model has it.
 */

import { h, placeUnder, setText } from "./dom.js";
import { FormField } from "./forms.js";
import { number, t } from "./i18n.js";
import { defaultsOf, ownDefaults, same, setOwnDefaults } from "./parameters.js";
import { StopList } from "./stops.js";

const LIMITS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]; // steps of the token slider, then none
let count = 0;

const SLIDERS = () => [
  { name: "temperature", label: t("Temperature"), help: t("0 always takes the likeliest word; higher is more varied."), min: 0, max: 2, step: 0.05 },
  { name: "top_p", label: t("Top-p"), help: t("Draws only from the likeliest words that together have this share."), min: 0.05, max: 1, step: 0.05, least: 0.01 },
  { name: "max_tokens", label: t("Token limit"), help: t("The answer ends here at the latest. Empty: as long as the model has room."), min: 1, max: 1_000_000, steps: LIMITS, empty: t("none") },
];

const NUMBERS = () => [
  { name: "top_k", label: t("Top-k"), help: t("Draws only from so many of the likeliest words. 0: from all."), min: 0, max: 2 ** 31 - 1 },
  { name: "min_p", label: t("Min-p"), help: t("Leaves out words less likely than this share of the likeliest one."), min: 0, max: 1, step: 0.01 },
  { name: "repetition_penalty", label: t("Repetition penalty"), help: t("Above 1: what was said before, also by you, is less likely."), min: 0.01, max: 100, step: 0.01 },
  { name: "presence_penalty", label: t("Presence penalty"), help: t("Above 0: words that the answer has already are less likely."), min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: t("Frequency penalty"), help: t("The same, and more so the more often it has them."), min: -2, max: 2, step: 0.1 },
  { name: "min_tokens", label: t("Minimum tokens"), help: t("The answer does not end by itself before so many."), min: 0, max: 2 ** 31 - 1 },
  { name: "seed", label: t("Seed"), help: t("The same number, settings and messages give the same answer."), min: 0, max: Number.MAX_SAFE_INTEGER, empty: t("random") },
];

export class Panel {
  #settings;
  #options;
  #element;
  #rows = new Map(); // parameter -> {element, mark, show(value)}
  #opener = null;
  #own;
  #id = `settings-${++count}`;
  #reading = false; // what is typed is not written over

  constructor(settings, options) {
    this.#settings = settings;
    this.#options = options;
    this.#element = this.#build();
    this.#element.addEventListener("toggle", ({ newState }) => {
      this.#opener.setAttribute("aria-expanded", String(newState === "open"));
      if (newState === "closed") this.show(); // only what counts stays
    });
    this.#element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !event.target.matches("input[type=number], input[type=range]") || !event.target.reportValidity()) return;
      event.preventDefault(); // closing moves the focus to the button, which the same key would press
      this.#element.hidePopover();
    });
    document.querySelector("main").append(this.#element);
    this.show();
  }

  open(button, field) {
    const toggled = button.popoverTargetElement === this.#element; // the browser does it
    this.#opener?.setAttribute("aria-expanded", "false");
    this.#opener = button;
    if (!toggled) {
      button.popoverTargetElement = this.#element;
      this.#element.showPopover();
    }
    requestAnimationFrame(() => {
      if (!this.#element.matches(":popover-open")) return;
      placeUnder(this.#element, button);
      if (field) this.#rows.get(field).focus();
    });
  }

  /** Show what counts now. */
  show() {
    const { choices, model } = this.#settings;
    const usual = defaultsOf(model);
    for (const [name, row] of this.#rows) {
      const changed = name in choices;
      row.element.classList.toggle("changed", changed);
      setText(row.mark, changed ? t("changed") : "");
      if (this.#reading !== name) row.show(changed ? choices[name] : usual[name], usual[name]);
    }
    const some = Object.keys(choices).length > 0;
    this.#own.hidden = !model || !(some || ownDefaults(model));
    if (model) setText(this.#own, some ? t("Use these for {model} from now on", { model: model.name }) : t("Forget my defaults for {model}", { model: model.name }));
  }

  #choose(name, value) {
    const { [name]: _, ...others } = this.#settings.choices;
    const usual = defaultsOf(this.#settings.model)[name];
    this.#reading = name;
    this.#settings.choices = value === undefined || same(value, usual) ? others : { ...others, [name]: value };
    this.#reading = false;
  }

  #build() {
    const title = h("h2", { class: "panel-title", id: `${this.#id}-title` }, t("Answer settings"));
    const presets = h("button", { class: "text-button", type: "button", "aria-haspopup": "menu", "aria-expanded": "false", onclick: () => this.#settings.presets(presets) }, t("Presets"));
    const more = h("details", { class: "settings-more", ontoggle: () => more.open && more.scrollIntoView() }, h("summary", {}, t("More")), ...NUMBERS().map((about) => this.#number(about)), this.#stops(), this.#check(), this.#thinking(), this.#form());
    this.#own = h("button", { class: "text-button", type: "button", hidden: true, onclick: () => this.#keepOwn() });
    const close = h("button", { class: "button primary", type: "button", onclick: () => this.#element.hidePopover() }, t("Done"));
    const reset = h("button", { class: "button", type: "button", onclick: () => (this.#settings.choices = {}) }, t("Reset"));
    return h(
      "div",
      { class: "panel settings", id: this.#id, popover: "auto", role: "dialog", "aria-labelledby": title.id },
      h("header", { class: "settings-head" }, title, presets),
      h("div", { class: "settings-body", tabindex: -1 }, this.#system(), ...SLIDERS().map((about) => this.#slider(about)), more),
      h("footer", { class: "settings-foot" }, this.#own, h("div", { class: "panel-foot" }, reset, close)),
    );
  }

  /** A row of the panel; `controls` are given its label's id and that of its help. */
  #row(name, label, help, make, kind = "") {
    const id = `${this.#id}-${name}`;
    const mark = h("span", { class: "sr" });
    const { control, below = [], show, focus = () => control.focus() } = make({ id, describedBy: help ? `${id}-help` : null });
    const head = h("label", { for: id }, label, " ", mark);
    const element = h("div", { class: `setting ${kind}` }, head, control, ...below, help && h("p", { id: `${id}-help` }, help));
    this.#rows.set(name, { element, mark, show, focus });
    return element;
  }

  #box({ id, describedBy, about, oninput }) {
    const { min, max, step = 1, least = min, empty = "" } = about;
    const box = h("input", { type: "number", id, min: least, max, step: Number.isInteger(step) ? step : "any", inputmode: Number.isInteger(step) ? "numeric" : "decimal", placeholder: empty, "aria-describedby": describedBy });
    box.addEventListener("input", () => {
      if (!box.validity.valid) return;
      this.#choose(about.name, box.value === "" ? undefined : Number(box.value));
      oninput?.(box.value === "" ? undefined : Number(box.value));
    });
    // By the browser's own steps a value between two of them would be wrong.
    box.addEventListener("keydown", (event) => {
      const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!direction || Number.isInteger(step)) return;
      event.preventDefault();
      box.value = Math.min(max, Math.max(least, Number((Number(box.value) + direction * step).toFixed(2))));
      box.dispatchEvent(new Event("input", { bubbles: true }));
    });
    return box;
  }

  #number(about) {
    return this.#row(about.name, about.label, about.help, ({ id, describedBy }) => {
      const control = this.#box({ id, describedBy, about });
      return { control, show: (value, usual) => this.#fillBox(control, about, value, usual) };
    });
  }

  #slider(about) {
    return this.#row(about.name, about.label, about.help, ({ id, describedBy }) => {
      const { steps, min, max, step } = about;
      const slider = h("input", { type: "range", id: `${id}-slider`, min: steps ? 0 : min, max: steps ? steps.length : max, step: steps ? 1 : step, "aria-label": about.label, "aria-describedby": describedBy });
      const place = (value) => {
        slider.value = !steps ? value : value === undefined ? steps.length : steps.findLastIndex((one) => one <= Math.max(value, steps[0]));
        if (steps) slider.setAttribute("aria-valuetext", value === undefined ? about.empty : number(value));
      };
      const control = this.#box({ id, describedBy, about, oninput: place });
      slider.addEventListener("input", () => {
        const value = steps ? steps[slider.value] : Number(slider.value);
        this.#choose(about.name, value);
        this.#fillBox(control, about, value ?? defaultsOf(this.#settings.model)[about.name]);
        if (steps) slider.setAttribute("aria-valuetext", value === undefined ? about.empty : number(value));
      });
      const show = (value, usual) => {
        this.#fillBox(control, about, value, usual);
        place(value);
      };
      return { control, below: [slider], show };
    });
  }

  #fillBox(box, { empty }, value, usual) {
    box.value = value ?? "";
    box.placeholder = usual ?? empty ?? "";
  }

  #system() {
    const help = t("Said to the model before the conversation: who it is, and how it shall answer.");
    return this.#row("system", t("System prompt"), help, ({ id, describedBy }) => {
      const control = h("textarea", { id, rows: 2, spellcheck: "true", "aria-describedby": describedBy });
      control.addEventListener("input", () => this.#choose("system", control.value));
      return { control, show: (value) => (control.value = value) };
    }, "wide");
  }

  #stops() {
    return this.#row("stop", t("Stop strings"), t("The answer ends before the first of them."), ({ id, describedBy }) => {
      const list = new StopList(id, describedBy, (texts) => this.#choose("stop", texts));
      return { control: list.element, show: (value) => list.show(value), focus: () => list.focus() };
    }, "wide");
  }

  #check() {
    return this.#row("ignore_eos", t("Ignore the end"), t("Goes on after the model's end token, to the token limit."), ({ id, describedBy }) => {
      const control = h("input", { type: "checkbox", id, "aria-describedby": describedBy });
      control.addEventListener("change", () => this.#choose("ignore_eos", control.checked));
      return { control, show: (value) => (control.checked = value) };
    });
  }

  #thinking() {
    return this.#row("thinking", t("Thinking"), t("For models that can do both."), ({ id, describedBy }) => {
      const control = h("select", { id, "aria-describedby": describedBy }, h("option", { value: "" }, t("Automatic")), h("option", { value: "true" }, t("On")), h("option", { value: "false" }, t("Off")));
      control.addEventListener("change", () => this.#choose("thinking", { true: true, false: false }[control.value]));
      return { control, show: (value) => (control.value = value === undefined ? "" : String(value)) };
    });
  }

  #form() {
    return this.#row("structure", t("Answer form"), "", ({ id }) => {
      const field = new FormField(id, (form) => this.#choose("structure", form));
      return { control: field.select, below: [field.element], show: (value) => field.show(value) };
    });
  }

  #keepOwn() {
    const { choices, model, values } = this.#settings;
    const some = Object.keys(choices).length > 0;
    setOwnDefaults(model, some ? values : null);
    this.#settings.show(some ? values : null);
    this.#options.say(some ? t("These are your defaults for {model} now.", { model: model.name }) : t("Your defaults for {model} are forgotten.", { model: model.name }));
    if (this.#own.hidden) this.#element.querySelector(".settings-body").focus();
  }
}
