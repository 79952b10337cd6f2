/** Settings saved by name: a menu that puts one to use, and a dialog that keeps, renames and deletes them. */

import { call } from "./api.js";
import { h, icon, setText } from "./dom.js";
import { n, t } from "./i18n.js";
import { openMenu } from "./menu.js";
import { same } from "./parameters.js";

const NAME_CHARACTERS = 60; // as the server takes

/** The menu under a button. `settings` is what they are put into; `options`: say(text), problem(text). */
export async function openPresets(button, settings, { say, problem }) {
  let presets;
  try {
    ({ presets } = await call("GET", "/presets"));
  } catch (error) {
    return problem(error.message);
  }
  const use = (preset) => {
    settings.show(preset.settings);
    say(t("Preset {name} is in use.", { name: preset.name }));
  };
  openMenu(button, t("Presets"), [
    ...presets.map((preset) => ({ label: preset.name, icon: same(sorted(preset.settings), sorted(settings.values)) ? "check" : "blank", act: () => use(preset) })),
    { label: presets.length ? t("Save and manage…") : t("Save these settings…"), icon: "bookmark", act: () => new PresetsDialog(presets, settings, say) },
  ]);
}

class PresetsDialog {
  #presets;
  #settings;
  #say;
  #name = h("input", { type: "text", id: "preset-name", maxlength: NAME_CHARACTERS, autocomplete: "off", placeholder: t("A name"), required: true });
  #save = h("button", { class: "button primary", type: "submit" });
  #problem = h("p", { class: "remark", role: "status" }); // the page's own live region is out of reach behind a dialog
  #list = h("ul", { class: "presets" });
  #dialog;

  constructor(presets, settings, say) {
    this.#presets = presets;
    this.#settings = settings;
    this.#say = say;
    const form = h("form", { class: "preset-form" }, h("label", { for: "preset-name" }, t("Save the settings as they are now")), h("div", { class: "preset-line" }, this.#name, this.#save));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep(this.#name.value.trim());
    });
    this.#name.addEventListener("input", () => this.#label());
    const done = h("button", { class: "button", type: "button", onclick: () => this.#dialog.close() }, t("Done"));
    this.#dialog = h("dialog", { class: "dialog", "aria-labelledby": "presets-title" }, h("h2", { id: "presets-title" }, t("Presets")), form, this.#list, this.#problem, h("div", { class: "panel-foot" }, done));
    this.#dialog.addEventListener("close", () => this.#dialog.remove());
    document.body.append(this.#dialog);
    this.#draw();
    this.#dialog.showModal();
    this.#name.focus();
  }

  #label() {
    const known = this.#presets.some(({ name }) => name === this.#name.value.trim());
    setText(this.#save, known ? t("Overwrite") : t("Save"));
  }

  async #keep(name) {
    if (!name) return;
    if (await this.#change("PUT", name, this.#settings.values)) {
      this.#name.value = "";
      this.#label();
      this.#said(t("Preset {name} is saved.", { name }));
    }
  }

  /** Have the server change one, and show what it has then; says whether it worked. */
  async #change(method, name, body) {
    try {
      await call(method, `/presets/${encodeURIComponent(name)}`, body);
      ({ presets: this.#presets } = await call("GET", "/presets"));
    } catch (error) {
      this.#report(error.message, true);
      return false;
    }
    this.#draw();
    return true;
  }

  #draw() {
    this.#list.replaceChildren(...this.#presets.map((preset) => this.#row(preset)));
    this.#label();
  }

  #row({ name, settings }) {
    const action = (symbol, label, act) => h("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, onclick: act }, icon(symbol));
    const use = () => {
      this.#settings.show(settings);
      this.#dialog.close();
      this.#say(t("Preset {name} is in use.", { name }));
    };
    const row = h(
      "li",
      { class: "preset-line" },
      h("button", { class: "preset-use", type: "button", title: t("Use {name}", { name }), onclick: use }, h("span", { class: "preset-name" }, name), h("span", { class: "preset-facts" }, factsOf(settings))),
      action("bookmark", t("Overwrite {name} with the settings as they are now", { name }), async () => (await this.#change("PUT", name, this.#settings.values)) && this.#said(t("Preset {name} is saved.", { name }))),
      action("pencil", t("Rename {name}", { name }), () => row.replaceWith(this.#renaming(name))),
      action("trash", t("Delete {name}", { name }), async () => (await this.#change("DELETE", name)) && this.#said(t("Preset {name} is deleted.", { name }))),
    );
    return row;
  }

  // The button that was pressed is gone with its row.
  #said(text) {
    this.#report(text);
    this.#name.focus();
  }

  #report(text, bad = false) {
    setText(this.#problem, text);
    this.#problem.classList.toggle("bad", bad);
  }

  #renaming(name) {
    const box = h("input", { type: "text", maxlength: NAME_CHARACTERS, "aria-label": t("New name of {name}", { name }), autocomplete: "off", required: true });
    box.value = name;
    const line = h("li", {}, h("form", { class: "preset-line" }, box, h("button", { class: "button", type: "submit" }, t("Rename"))));
    line.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (await this.#change("PATCH", name, { name: box.value })) this.#said(t("It is called {name} now.", { name: box.value }));
    });
    line.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // only this, not the dialog
      this.#draw();
      this.#name.focus();
    });
    requestAnimationFrame(() => box.select());
    return line;
  }
}

function factsOf({ system, ...others }) {
  const count = Object.keys(others).length;
  const parts = [system ? system : "", count ? n("{count} setting", "{count} settings", count) : ""];
  return parts.filter(Boolean).join(" · ") || t("As the model has it");
}

function sorted(settings) {
  return Object.fromEntries(Object.entries(settings).sort());
}
