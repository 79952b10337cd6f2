/** The sheet with all shortcuts. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

const MAC = /Mac|iP/.test(navigator.platform);
const NAMES = { mod: MAC ? "⌘" : "Ctrl", shift: MAC ? "⇧" : "Shift", enter: "Enter", esc: "Esc" };

/** Shows `keys`, a list of {keys, what}. */
export function showHelp(keys) {
  const done = h("button", { class: "button primary", type: "button", onclick: () => dialog.close() }, t("Done"));
  const row = ({ keys, what }) => h("div", { class: "help-row" }, h("dt", {}, what), h("dd", {}, ...keys.map((key) => h("kbd", {}, NAMES[key] ?? key.toUpperCase()))));
  const dialog = h(
    "dialog",
    { class: "dialog help", "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, t("Keyboard shortcuts")),
    h("dl", { class: "help-keys", tabindex: 0 }, ...keys.map(row)),
    h("div", { class: "panel-foot" }, done),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  done.focus();
}
