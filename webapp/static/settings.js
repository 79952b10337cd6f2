/** Temperature, top-p and the token limit: a popover, kept in this browser. */

import { $, placeUnder, setText } from "./dom.js";
import { recall, remember } from "./store.js";

const DEFAULTS = { temperature: 0.7, top_p: 1, max_tokens: null };

/** The controls; `values` is what an ask carries. */
export class SettingsPanel {
  values = { ...DEFAULTS, ...recall("settings", {}) };
  #opener = $("settings-open");

  constructor() {
    const panel = $("settings");
    panel.addEventListener("toggle", (event) => {
      const open = event.newState === "open";
      this.#opener.setAttribute("aria-expanded", String(open));
      if (open) placeUnder(panel, this.#opener);
      else this.#opener = $("settings-open");
    });
    panel.addEventListener("input", () => this.#read());
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !event.target.matches("input") || !event.target.reportValidity()) return;
      event.preventDefault(); // closing moves the focus to the button, which the same key would press
      panel.hidePopover();
    });
    panel.addEventListener("beforetoggle", (event) => event.newState === "closed" && this.#show()); // only what counts stays
    $("settings-reset").addEventListener("click", () => {
      this.values = { ...DEFAULTS };
      this.#keep();
      this.#show();
    });
    this.#show();
  }

  /** Show a conversation's values; null shows those that new chats begin with. */
  show(values) {
    this.values = { ...DEFAULTS, ...(values ?? recall("settings", {})) };
    this.#show();
  }

  /** Open it under another button than its own. */
  open(button) {
    this.#opener = button;
    $("settings").showPopover();
  }

  #read() {
    const limit = $("max_tokens");
    this.values = {
      temperature: Number($("temperature").value),
      top_p: Number($("top_p").value),
      max_tokens: limit.value !== "" && limit.validity.valid ? Number(limit.value) : null,
    };
    this.#keep();
    this.#label();
  }

  #keep() {
    remember("settings", this.values);
  }

  #show() {
    $("temperature").value = this.values.temperature;
    $("top_p").value = this.values.top_p;
    $("max_tokens").value = this.values.max_tokens ?? "";
    this.#label();
  }

  #label() {
    setText($("temperature-shown"), String(this.values.temperature));
    setText($("top_p-shown"), String(this.values.top_p));
    const changed = Object.keys(DEFAULTS).some((name) => this.values[name] !== DEFAULTS[name]);
    $("settings-open").classList.toggle("changed", changed);
    $("settings-open").setAttribute("aria-label", changed ? "Answer settings, changed" : "Answer settings");
  }
}
