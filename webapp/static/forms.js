/** The form that an answer must have: which kind, and what it says, checked as far as a page can. */

import { h, setText } from "./dom.js";
import { t } from "./i18n.js";

const KINDS = () => ({
  "": { label: t("Any") },
  json_object: { label: t("JSON") },
  json_schema: { label: t("JSON schema"), hint: '{"type": "object", "properties": {…}}', check: isObject },
  regex: { label: t("Regular expression"), hint: "[A-Z][a-z]+" },
  choice: { label: t("Choice"), hint: t("One answer a line") },
  grammar: { label: t("Grammar"), hint: 'root ::= "yes" | "no"' },
});

export class FormField {
  #kinds = KINDS();
  #text;
  #problem;
  #value;
  #onchange;

  /** `onchange(form)`: {kind, value} as an ask carries it, or undefined for any; a form with a mistake does not count. */
  constructor(id, onchange) {
    this.#onchange = onchange;
    this.select = h("select", { id }, ...Object.entries(this.#kinds).map(([value, { label }]) => h("option", { value }, label)));
    this.#text = h("textarea", { rows: 3, spellcheck: "false", class: "code-box", "aria-label": t("What the form is"), "aria-describedby": `${id}-problem` });
    this.#problem = h("p", { class: "remark", id: `${id}-problem`, role: "status" });
    this.element = h("div", { class: "form-field", hidden: true }, this.#text, this.#problem);
    this.select.addEventListener("change", () => {
      this.#text.value = "";
      this.#typed();
    });
    this.#text.addEventListener("input", () => this.#typed());
  }

  show(form) {
    if (JSON.stringify(form) === JSON.stringify(this.#value) && this.select.value === (form?.kind ?? "")) return;
    this.select.value = form?.kind ?? "";
    this.#text.value = form?.kind === "choice" ? JSON.parse(form.value).join("\n") : (form?.value ?? "");
    this.#value = form;
    this.#draw("");
  }

  #typed() {
    const kind = this.select.value;
    const text = this.#text.value;
    const problem = (text.trim() && this.#kinds[kind].check?.(text)) || "";
    const value = kind === "choice" ? JSON.stringify(text.split("\n").filter((line) => line.trim())) : text;
    const whole = kind === "json_object" || (kind && text.trim() && !problem);
    this.#value = whole ? { kind, value: kind === "json_object" ? "" : value } : undefined;
    this.#draw(problem);
    this.#onchange(this.#value);
  }

  #draw(problem) {
    const { hint } = this.#kinds[this.select.value];
    this.element.hidden = !hint;
    this.#text.placeholder = hint ?? "";
    this.#text.setAttribute("aria-invalid", String(Boolean(problem)));
    setText(this.#problem, problem || (hint && !this.#text.value.trim() ? t("Empty: any form.") : ""));
    this.#problem.classList.toggle("bad", Boolean(problem));
  }
}

function isObject(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? "" : t("A schema is an object in braces.");
  } catch (error) {
    return t("This is not JSON yet: {problem}", { problem: error.message });
  }
}
