/**
 * In a chat of hundreds of messages those far from view rest: an empty element keeps the room of each, and before one comes
 * to it, the message is made again. So a long chat costs little more memory than a short one.
 */

import { h } from "./dom.js";

const MANY = 100; // messages; with fewer, all stay, so that the browser's own search finds them
const FAR = "400%"; // of the window's height

export class Rest {
  #turns;
  #options;

  /**
   * `turns` are in `scroller`, one element each; `options`: rest(turn, place) puts the place where the turn is, wake(place)
   * the turn back, done() comes after either.
   */
  constructor(scroller, turns, options) {
    this.#turns = turns;
    this.#options = options;
    const sight = new IntersectionObserver((seen) => this.#seen(seen), { root: scroller, rootMargin: `${FAR} 0px` });
    const changes = new MutationObserver((records) => {
      for (const { addedNodes, removedNodes } of records) {
        removedNodes.forEach((turn) => sight.unobserve(turn));
        addedNodes.forEach((turn) => sight.observe(turn));
      }
    });
    changes.observe(turns, { childList: true });
  }

  #seen(seen) {
    const many = this.#turns.childElementCount > MANY;
    const waking = seen.filter(({ target, isIntersecting }) => isIntersecting && target.matches(".resting"));
    const tired = seen.filter(({ target, isIntersecting, boundingClientRect }) => many && !isIntersecting && boundingClientRect.height && mayRest(target));
    for (const { target } of waking) this.#options.wake(target);
    for (const { target, boundingClientRect } of tired) {
      const place = h("div", { class: `${target.className} resting` });
      place.style.height = `${boundingClientRect.height}px`;
      this.#options.rest(target, place);
    }
    if (waking.length || tired.length) this.#options.done();
  }
}

/** Not while it grows, is written anew, or may be part of what a person is about to copy. */
function mayRest(turn) {
  return turn.isConnected && turn.matches(":is(.question, .done):not(.resting)") && !turn.querySelector("form") && getSelection().type !== "Range";
}
