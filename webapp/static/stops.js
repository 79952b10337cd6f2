/** Stop strings: a short list of texts, each with a button that takes it away, and a box for one more. */

import { h, icon } from "./dom.js";
import { t } from "./i18n.js";

const MOST = 64; // as the server takes
const LONGEST = 1000;

export class StopList {
  #texts = [];
  #list = h("ul", { class: "chips" });
  #box;
  #onchange;

  /** `onchange(texts)` is called when one was added or taken away. */
  constructor(id, describedBy, onchange) {
    this.#onchange = onchange;
    this.#box = h("input", { type: "text", id, maxlength: LONGEST, placeholder: t("Type one, then Enter"), autocomplete: "off", "aria-describedby": describedBy });
    this.#box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      this.#add();
    });
    this.#box.addEventListener("blur", () => this.#add()); // what was typed is meant
    this.element = h("div", { class: "stops" }, this.#list, this.#box);
  }

  focus() {
    this.#box.focus();
  }

  show(texts) {
    this.#texts = texts;
    this.#draw();
  }

  #add() {
    const text = unescape(this.#box.value);
    if (!text || this.#texts.includes(text) || this.#texts.length >= MOST) return;
    this.#box.value = "";
    this.#change([...this.#texts, text]);
  }

  #change(texts) {
    this.#texts = texts;
    this.#draw();
    this.#onchange(texts);
  }

  #draw() {
    const remove = (text) => {
      this.#change(this.#texts.filter((other) => other !== text));
      this.#box.focus();
    };
    this.#list.replaceChildren(
      ...this.#texts.map((text) => {
        const label = t("Take away {text}", { text: escape(text) });
        return h("li", { class: "chip" }, h("code", {}, escape(text)), h("button", { class: "chip-remove", type: "button", "aria-label": label, title: label, onclick: () => remove(text) }, icon("close")));
      }),
    );
    this.#list.hidden = !this.#texts.length;
  }
}

// A new line cannot be typed into the box, so it is written as in a program.
function unescape(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

function escape(text) {
  return text.replace(/[\n\t\\]/g, (letter) => ({ "\n": "\\n", "\t": "\\t", "\\": "\\\\" })[letter]);
}
