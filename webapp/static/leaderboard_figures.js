/** The leaderboard's figures: drawn when the page has time, and drawn anew with other numbers when they are near the window. */

import { average, intervals } from "./leaderboard_bars.js";
import { counts, wins } from "./leaderboard_heat.js";
import { history } from "./leaderboard_lines.js";

const NEAR = "800px"; // to the window
const AWAY_MS = 5000; // until a server that could not be reached is asked again
const DRAW = { intervals, average, win: wins, count: counts, history };
const idle = globalThis.requestIdleCallback ?? ((run) => setTimeout(run, 50));

export class Figures {
  #load;
  #board = null; // a promise of what is drawn
  #figures;
  #near = new Set();
  #stale;
  #states = new Map(); // what a reader has chosen in each

  /** `load` gives the board. */
  constructor(root, load) {
    this.#load = load;
    this.#figures = [...root.querySelectorAll("[data-figure]")];
    this.#stale = new Set(this.#figures);
    const seen = new IntersectionObserver((entries) => this.#come(entries), { rootMargin: NEAR });
    for (const figure of this.#figures) seen.observe(figure);
    idle(() => this.#next());
  }

  /** The board is another one. */
  renew() {
    this.#board = null;
    this.#stale = new Set(this.#figures);
    for (const figure of this.#near) this.#draw(figure);
  }

  #come(entries) {
    for (const { target, isIntersecting } of entries) {
      this.#near[isIntersecting ? "add" : "delete"](target);
      if (isIntersecting) this.#draw(target);
    }
  }

  /** All of them, one after the other, so that the page's length is what it will be. */
  async #next() {
    const figure = this.#figures.find((one) => !this.#states.has(one));
    if (!figure) return;
    await this.#draw(figure);
    idle(() => this.#next());
  }

  async #draw(figure) {
    if (!this.#states.has(figure)) this.#states.set(figure, {});
    if (!this.#stale.delete(figure)) return;
    const asked = (this.#board ??= this.#load());
    let board;
    try {
      board = await asked;
    } catch {
      return this.#later(figure, asked);
    }
    if (asked !== this.#board || !board?.models.length) return; // there is a newer one, or none
    DRAW[figure.dataset.figure](figure.querySelector(".figure-plot"), board, this.#states.get(figure));
  }

  /** The server is away, so what was asked of it is asked again. */
  #later(figure, asked) {
    if (asked === this.#board) this.#board = null;
    this.#stale.add(figure);
    setTimeout(() => this.#draw(figure), AWAY_MS);
  }
}
