/** A question that must be answered before something is done for good. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

/** Whether the person wants it: `title` asks, `text` says what happens, `yes` is the button that does it. */
export function confirm(title, text, yes) {
  return new Promise((resolve) => {
    const keep = h("button", { class: "button", type: "button", onclick: () => dialog.close() }, t("Keep it"));
    const go = h("button", { class: "button danger", type: "button", onclick: () => dialog.close("yes") }, yes);
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" },
      h("h2", { id: "confirm-title" }, title),
      h("p", { id: "confirm-text" }, text),
      h("div", { class: "panel-foot" }, keep, go),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    keep.focus();
  });
}
