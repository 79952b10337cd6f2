/**
 * Keeps the latest text in view while the reader is at the end, and keeps out of the way as soon as they scroll up.
 */

const NEAR = 48; // pixels from the end that still count as being there

export class Follower {
  #scroller;
  #button;
  #following = true;
  #last = 0;

  /** `content` is what grows inside `scroller`; `button` jumps to the end and shows itself when that is far. */
  constructor(scroller, content, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // A wheel turned upwards is a wish, even when a burst of text scrolls further down in the same frame.
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.#release(), { passive: true });
    button.addEventListener("click", () => this.toEnd(true));
    const observer = new ResizeObserver(() => this.#grown());
    observer.observe(content);
    observer.observe(scroller);
  }

  /** Go to the end and stay there; smoothly only when a person asked and likes motion. */
  toEnd(smooth = false) {
    this.#following = true;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const glides = smooth && !calm && this.#distance() <= 3 * this.#scroller.clientHeight;
    this.#scroller.scrollTo({ top: this.#scroller.scrollHeight, behavior: glides ? "smooth" : "instant" });
    this.#show();
  }

  /** Put something above what is in view, or change what is below, without moving `element`. */
  around(element, change) {
    const top = element.getBoundingClientRect().top;
    change();
    if (element.isConnected) this.#scroller.scrollTop += element.getBoundingClientRect().top - top;
    this.#following = this.#distance() < NEAR;
    this.#last = this.#scroller.scrollTop;
    this.#show();
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #release() {
    if (this.#scroller.scrollHeight > this.#scroller.clientHeight) this.#following = false;
  }

  #scrolled() {
    const top = this.#scroller.scrollTop;
    if (this.#distance() < NEAR && top >= this.#last) this.#following = true;
    else if (top < this.#last && this.#distance() >= NEAR) this.#following = false;
    this.#last = top;
    this.#show();
  }

  #grown() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#show();
  }

  #show() {
    this.#button.hidden = this.#following || this.#distance() < NEAR;
  }
}
