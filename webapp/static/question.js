/** How a question looks: plain text, never Markdown, with its files folded; and how it is written anew. */

import { copy, h, icon } from "./dom.js";
import { foldedFile } from "./files.js";
import { t } from "./i18n.js";
import { Versions } from "./versions.js";

const LONG_MESSAGE = 1800; // characters that are shown before "Show all"
const LONG_LINES = 24;

/** A question. `act(what, detail)` does what its buttons say: turn (step), edit (text), remove; a `plain` one has none. */
export class QuestionView {
  text;
  files;
  #act;
  #versions;
  #body;
  #foot;
  #edit;
  element;

  constructor({ text, files = [] }, act, { plain = false } = {}) {
    this.text = text;
    this.files = files;
    this.#act = act;
    this.#versions = new Versions((step) => act("turn", step));
    const button = (name, label, press) => h("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, onclick: press }, ...name.map(icon));
    this.#edit = button(["pencil"], t("Edit this message"), () => this.edit());
    const copying = button(["copy", "check"], t("Copy this message"), () => copy(text, copying));
    const remove = button(["trash"], t("Delete from here"), () => act("remove"));
    this.#edit.classList.add("act");
    remove.classList.add("act");
    this.#body = h("div", { class: "question-body" }, ...files.map(foldedFile), ...(text ? foldable(text) : []));
    this.#foot = h("footer", { class: "turn-foot" }, this.#versions.element, this.#edit, copying, remove);
    this.element = h("article", { class: "turn question" }, h("h2", { class: "sr" }, t("You wrote")), this.#body, !plain && this.#foot);
  }

  /** Which of its versions it is. */
  set versions({ at, count }) {
    this.#versions.show(at, count);
  }

  /** Put the focus on the arrow that was pressed to get here. */
  focusVersions(step) {
    this.#versions.focus(step);
  }

  /** Write it anew, in its own place, beginning with `text`. */
  edit(text = this.text) {
    const field = h("textarea", { class: "field", "aria-label": t("Edit this message"), rows: 2 });
    field.value = text;
    const close = () => {
      form.replaceWith(this.#body);
      this.#foot.hidden = false;
      this.#edit.focus({ preventScroll: true });
    };
    const form = h(
      "form",
      { class: "question-edit" },
      ...this.files.map(foldedFile),
      field,
      h(
        "div",
        { class: "panel-foot" },
        h("button", { class: "button", type: "button", title: "Esc", onclick: close }, t("Cancel")),
        h("button", { class: "button primary", type: "submit", title: t("Ctrl + Enter") }, t("Send")),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!field.value.trim() && !this.files.length) return field.focus();
      if (this.#act("edit", field.value) !== false) close();
    });
    form.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.#body.replaceWith(form);
    this.#foot.hidden = true;
    field.focus({ preventScroll: true });
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

function foldable(text) {
  const body = h("div", { class: "question-text" }, text);
  if (text.length <= LONG_MESSAGE && text.split("\n").length <= LONG_LINES) return [body];
  body.classList.add("folded");
  const button = h("button", { class: "text-button", type: "button", "aria-expanded": "false" }, t("Show all"));
  button.addEventListener("click", () => {
    const folded = body.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? t("Show all") : t("Show less");
  });
  return [body, button];
}
