/** The vote: four buttons, and in their place what came of it. */

import { $, setText } from "./dom.js";
import { t, told } from "./i18n.js";

const SAID = { a: t("You said: A is better."), b: t("You said: B is better."), tie: t("You said: a tie."), bad: t("You said: both are bad.") };

export class Votes {
  #ready = false;

  /** `options`: vote(winner), fresh() for a new round. */
  constructor({ vote, fresh }) {
    $("votes").addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button && this.#ready) vote(button.dataset.winner);
    });
    $("verdict-new").addEventListener("click", fresh);
  }

  /** Cast one by its key; nothing happens when there is nothing to vote on. */
  press(winner) {
    $("votes").querySelector(`[data-winner=${winner}]`).click();
  }

  /** To the buttons, for who votes without a pointer. */
  focus() {
    if (this.#ready) $("votes").querySelector("button").focus();
  }

  /** Nothing was asked yet. */
  hide() {
    $("ballot").hidden = true;
    setText($("verdict-text"), "");
  }

  /** The buttons, which do something when `ready`. */
  offer(ready) {
    const hadFocus = $("verdict").contains(document.activeElement);
    this.#ready = ready;
    $("ballot").hidden = $("votes").hidden = false;
    $("verdict").hidden = true;
    for (const button of $("votes").children) button.setAttribute("aria-disabled", String(!ready));
    if (hadFocus) $("prompt").focus({ preventScroll: true });
  }

  /** What came of the round, as the server shows it; gives it in words. */
  close({ state, kind, winner, models, why }) {
    const hadFocus = $("votes").contains(document.activeElement);
    const [a, b] = models;
    const names = kind === "blind" && a ? t("A was {a}, B was {b}.", { a, b }) : "";
    const over = why ? told({ message: why }) : t("One of the two answers has failed, so this round is void. Begin a new one.");
    const words = state === "void" ? [over] : [SAID[winner], names];
    const text = words.filter(Boolean).join(document.documentElement.lang === "en" ? " " : "");
    this.#ready = false;
    $("ballot").hidden = $("verdict").hidden = false;
    $("votes").hidden = true;
    setText($("verdict-text"), text);
    $("verdict").classList.toggle("void", state === "void");
    $("verdict-new").hidden = kind === "named" && state !== "void";
    if (hadFocus) ($("verdict-new").hidden ? $("prompt") : $("verdict-new")).focus({ preventScroll: true });
    return text;
  }
}
