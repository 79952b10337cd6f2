/** How full the model's context is: a small ring, and the same in words. */

import { n, number, t } from "./i18n.js";

const NEARLY = 0.85; // of the context: it shows that the end is near

export class Gauge {
  #element;

  /** `element` holds a circle of length 100. */
  constructor(element) {
    this.#element = element;
  }

  /** `used` tokens of `limit`; hidden while one of them is not known. */
  show(used, limit) {
    this.#element.hidden = !used || !limit;
    if (this.#element.hidden) return;
    const share = Math.min(1, used / limit);
    const words = t("{used} of {limit} used", { used: number(used), limit: n("{count} token", "{count} tokens", limit) });
    this.#element.classList.toggle("full", share > NEARLY);
    this.#element.querySelector(".gauge-used").setAttribute("stroke-dasharray", `${100 * share} 100`);
    this.#element.setAttribute("aria-label", t("Context: {words}", { words }));
    this.#element.setAttribute("title", words);
  }
}
