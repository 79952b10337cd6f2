/**
 * The settings of what is asked next: the choices, and the buttons in the bar that show that there are some. A page of
 * several models has no button for one's system prompt, and its presets are in the panel.
 *
 * The panel itself comes when somebody opens it, see panel.js.
 */

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { choicesIn, defaultsOf, same, valuesOf } from "./parameters.js";

export class SettingsPanel {
  #choices = {};
  #model = null;
  #panel = null;
  #options;

  /** `options`: say(text) for screen readers, problem(text). */
  constructor(options) {
    this.#options = options;
    $("settings-open").addEventListener("click", () => this.open($("settings-open")));
    $("system-set")?.addEventListener("click", () => this.open($("system-set"), "system"));
    $("presets-open")?.addEventListener("click", () => this.presets($("presets-open")));
    this.#mark();
  }

  /** What was chosen in this conversation. */
  get choices() {
    return this.#choices;
  }

  set choices(choices) {
    this.#choices = choices;
    this.#changed();
  }

  /** What an ask carries: no field that is as it is built in. */
  get values() {
    return valuesOf(this.#choices, this.#model);
  }

  /** The model whose defaults count, as the server describes it. */
  get model() {
    return this.#model;
  }

  set model(model) {
    if (model?.name === this.#model?.name && same(model?.defaults, this.#model?.defaults)) return;
    // What the model before had by itself is nothing that a person chose.
    if (this.#model) this.#choices = choicesIn(this.#choices, this.#model);
    this.#model = model;
    this.#choices = choicesIn(this.#choices, model);
    this.#changed();
  }

  /** Show a conversation's values; null shows those that new chats begin with. */
  show(values) {
    this.choices = this.#model ? choicesIn(values ?? {}, this.#model) : (values ?? {});
  }

  /** Open the panel under a button, which opens and closes it from then on; the focus goes to a field if one is named. */
  async open(button, field = "") {
    const { Panel } = await import("./panel.js");
    this.#panel ??= new Panel(this, this.#options);
    this.#panel.open(button, field);
  }

  /** The menu of presets under a button. */
  async presets(button) {
    const { openPresets } = await import("./presets.js");
    openPresets(button, this, this.#options);
  }

  #changed() {
    this.#panel?.show();
    this.#mark();
  }

  #mark() {
    const changed = Object.keys(this.#choices).length > 0;
    $("settings-open").classList.toggle("changed", changed);
    $("settings-open").setAttribute("aria-label", changed ? t("Answer settings, changed") : t("Answer settings"));
    const button = $("system-set");
    if (!button) return;
    const system = this.#choices.system ?? defaultsOf(this.#model).system;
    button.hidden = !system.trim();
    button.title = system.slice(0, 200);
  }
}
