/** The arrows between the versions of a message: "2 / 3". */

import { h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";

export class Versions {
  #shown = h("span", { class: "versions-shown" });
  #before;
  #after;
  element;

  /** `turn(step)` shows the version before (-1) or after (1). */
  constructor(turn) {
    const arrow = (name, label, step) => h("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, onclick: () => turn(step) }, icon(name));
    this.#before = arrow("left", t("Version before"), -1);
    this.#after = arrow("right", t("Version after"), 1);
    this.element = h("span", { class: "versions act", role: "group", "aria-label": t("Versions"), hidden: true }, this.#before, this.#shown, this.#after);
  }

  /** It is the one at `at` of `count`; a single one has no arrows. */
  show(at, count) {
    this.element.hidden = count < 2;
    setText(this.#shown, `${at + 1} / ${count}`);
    this.#before.disabled = at <= 0;
    this.#after.disabled = at >= count - 1;
  }

  /** Take the focus where it was on the version before: on the same arrow, or the one that is left. */
  focus(step) {
    const [first, second] = step < 0 ? [this.#before, this.#after] : [this.#after, this.#before];
    (first.disabled ? second : first).focus({ preventScroll: true });
  }
}
