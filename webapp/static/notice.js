/** One sentence above the message box, for a while. */

import { $, h } from "./dom.js";
import { t } from "./i18n.js";

const SHOWN_MS = 9000;

export class Notice {
  #timer = 0;

  show(message) {
    $("notice").replaceChildren(h("p", {}, message), h("button", { class: "text-button", type: "button", onclick: () => this.hide() }, t("OK")));
    $("notice").hidden = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  hide() {
    $("notice").hidden = true;
  }
}
