/** Why an answer was rated as it was: a small popover under its button. */

import { $, h, placeUnder } from "./dom.js";
import { t } from "./i18n.js";

const LONGEST = 2000; // characters, as the server takes them

/** Ask for a note; `save(note)` is called if one was written. */
export function askNote(button, note, save) {
  const field = h("textarea", { class: "field", rows: 3, maxlength: LONGEST, "aria-label": t("Note"), placeholder: t("What was good or bad about it? (optional)") });
  field.value = note;
  const done = () => {
    if (field.value.trim() !== note) save(field.value.trim());
    close();
  };
  const close = () => {
    panel.hidePopover();
    button.focus({ preventScroll: true });
  };
  const panel = h(
    "form",
    { class: "panel rating", popover: "auto", "aria-label": t("Note on this answer") },
    field,
    h(
      "div",
      { class: "panel-foot" },
      h("button", { class: "button", type: "button", onclick: close }, t("No note")),
      h("button", { class: "button primary", type: "submit" }, t("Save")),
    ),
  );
  panel.addEventListener("submit", (event) => {
    event.preventDefault();
    done();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    done();
  });
  panel.addEventListener("toggle", ({ newState }) => newState === "closed" && panel.remove());
  $("main").append(panel);
  panel.showPopover({ source: button });
  placeUnder(panel, button);
  field.focus();
}
