/** The two models of the page for named ones: a list for each side. */

import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { stateText, usable } from "./picker.js";
import { obstacle } from "./sayings.js";
import { recall, remember } from "./store.js";

const FIELDS = ["model-a", "model-b"];

export class Models {
  #models = [];
  #known = false;
  #drawn = "";
  #chosen = recall("contenders", ["", ""]);

  /** `changed()` is called when a person has chosen another one. */
  constructor(changed) {
    FIELDS.forEach((id, i) =>
      $(id).addEventListener("change", () => {
        this.#chosen[i] = $(id).value;
        remember("contenders", this.#chosen);
        changed();
      }),
    );
  }

  /** Their names: [a, b]. */
  get names() {
    return FIELDS.map((id) => $(id).value);
  }

  /** The models as the server knows them now. */
  update(models) {
    this.#models = models;
    this.#known = true;
    this.#draw();
  }

  /** Those of a round that goes on. */
  show([a, b]) {
    this.#chosen = [a, b];
    this.#draw();
  }

  /** Why these two cannot be asked; "" if they can. */
  get obstacle() {
    const [a, b] = this.names;
    if (this.#known && this.#models.filter(usable).length < 2) return t("Two models are needed, and fewer are running.");
    if (a && a === b) return t("Pick two different models.");
    return this.names.map((name) => obstacle(this.#models.find((model) => model.name === name), this.#known)).find(Boolean) ?? "";
  }

  /** Only what differs: an open list would close. */
  #draw() {
    const state = JSON.stringify([this.#chosen, this.#models.map((model) => [model.name, model.state, model.progress])]);
    if (state === this.#drawn) return;
    this.#drawn = state;
    const ready = this.#models.filter(usable).map(({ name }) => name);
    const there = new Set(this.#models.map(({ name }) => name));
    FIELDS.forEach((id, i) => {
      const other = this.#chosen[1 - i];
      const wanted = this.#chosen[i] || ready.find((name) => name !== other && (i === 0 || name !== $(FIELDS[0]).value)) || "";
      const options = this.#models.map((model) => h("option", { value: model.name, selected: model.name === wanted }, model.state === "ready" ? model.name : `${model.name} (${stateText(model)})`));
      if (wanted && !there.has(wanted)) options.push(h("option", { value: wanted, selected: true }, `${wanted} (${t("gone")})`));
      $(id).replaceChildren(...options);
    });
  }
}
