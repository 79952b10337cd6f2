/** What screen readers hear: whole sentences of a running answer, now and then, and what happened to it. Never tokens. */

import { t } from "./i18n.js";

const PAUSE_MS = 2500;
const KEPT = 6;
const SENTENCE_END = /[.!?:…](?=\s)|[。！？]|\n\n/g;

/** Speaks through one polite live region. */
export class Announcer {
  #region;
  #said = 0;
  #last = 0;
  #name;

  /** `name` comes before what is read out of an answer, where several are written at once. */
  constructor(region, name = "") {
    this.#region = region;
    this.#name = name;
  }

  /** Say one thing. */
  say(text) {
    const line = document.createElement("p");
    line.textContent = text;
    this.#region.append(line);
    while (this.#region.children.length > KEPT) this.#region.firstChild.remove();
  }

  /** A new answer begins. */
  begin() {
    this.#said = 0;
    this.#last = performance.now();
  }

  /** Say the sentences of `text` that are finished and new, at most one batch every few seconds. */
  follow(text) {
    if (performance.now() - this.#last < PAUSE_MS) return;
    const fresh = text.slice(this.#said);
    const end = [...fresh.matchAll(SENTENCE_END)].at(-1);
    if (!end) return;
    this.#speak(fresh.slice(0, end.index + 1));
    this.#said += end.index + 1;
  }

  /** Say the rest of `text`, then how it ended, if that is to be said. */
  end(text, outcome) {
    this.#speak(text.slice(this.#said));
    this.#said = text.length;
    if (outcome) this.say(outcome);
  }

  #speak(markdown) {
    const text = markdown
      .replace(/```[\s\S]*?(```|$)/g, ` ${t("code block")} `)
      .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
      .replace(/[*_`#>|~]+/g, "")
      .replace(/\s+/g, " ")
      .trim();
    if (text) this.say(this.#name ? t("{name}: {text}", { name: this.#name, text }) : text);
    this.#last = performance.now();
  }
}
