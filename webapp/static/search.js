/**
 * The search box: what was said in one's conversations, the latest first, while it is typed.
 *
 * The server looks for a short time a call and says where to go on; this goes on until a screenful is found, and further
 * when the end of it is near. The arrow keys choose, Enter opens, Escape brings the list back.
 */

import { call } from "./api.js";
import { $, h, setText } from "./dom.js";
import { n, t } from "./i18n.js";

const TYPING_MS = 160;
const SCREENFUL = 20;

export class Search {
  #input = $("search");
  #list = $("found");
  #options;
  #query = "";
  #after = "";
  #turn = 0; // counts queries, so that a late answer is recognised
  #busy = false;
  #timer = 0;
  #active = -1;

  /** `options`: open(id, message), leave(). */
  constructor(options) {
    this.#options = options;
    this.#input.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#ask(), TYPING_MS);
    });
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("click", (event) => {
      const at = [...this.#list.children].indexOf(event.target.closest("[role=option]"));
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      if (at >= 0) this.#open(at);
    });
    $("found-scroller").addEventListener("scroll", () => this.#nearEnd() && this.#more(), { passive: true });
    this.#ask();
  }

  #ask() {
    const query = this.#input.value.trim();
    if (query === this.#query) return;
    this.#query = query;
    this.#turn++;
    this.#after = "";
    this.#busy = false;
    this.#activate(-1);
    const searching = query !== "";
    $("conversations").hidden = searching;
    $("found-scroller").hidden = !searching;
    this.#input.setAttribute("aria-expanded", String(searching));
    if (!searching) return this.#list.replaceChildren();
    this.#more(true);
  }

  async #more(first = false) {
    if (this.#busy || (!first && !this.#after)) return;
    this.#busy = true;
    const turn = this.#turn;
    const wanted = (first ? 0 : this.#list.children.length) + SCREENFUL;
    if (!first) setText($("found-status"), t("Searching…"));
    try {
      do {
        const query = new URLSearchParams({ q: this.#query, before: first ? "" : this.#after });
        const { results, after } = await call("GET", `/conversations/search?${query}`);
        if (turn !== this.#turn) return;
        const options = results.map((result, i) => this.#option(result, (first ? 0 : this.#list.children.length) + i));
        if (first) this.#list.replaceChildren(...options); // what was found before stays until there is something new
        else this.#list.append(...options);
        first = false;
        this.#after = after;
        setText($("found-status"), after ? t("Searching…") : this.#said());
      } while (this.#after && this.#list.children.length < wanted);
      if (this.#after) setText($("found-status"), "");
    } catch (error) {
      if (turn === this.#turn) setText($("found-status"), error.message);
    }
    if (turn === this.#turn) this.#busy = false;
  }

  #said() {
    const count = this.#list.children.length;
    return count ? n("{count} conversation", "{count} conversations", count) : t("Nothing was found.");
  }

  #nearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = $("found-scroller");
    return scrollHeight - scrollTop - clientHeight < 400;
  }

  #option({ conversation_id: id, title_parts: title, snippet, message_id: message, updated, archived }, i) {
    const day = new Date(updated).toLocaleDateString(document.documentElement.lang, { dateStyle: "medium" });
    const where = archived ? `${day} · ${t("Archive")}` : day;
    const option = h(
      "a",
      { role: "option", class: "found", id: `found-${i}`, href: `/c/${id}`, tabindex: -1, "aria-selected": "false", "data-id": id, "data-message": message },
      h("span", { class: "side-title", dir: "auto" }, ...marked(title.join("") ? title : [t("Untitled")])),
      snippet.length > 0 && h("span", { class: "found-text", dir: "auto" }, ...marked(snippet)),
      h("span", { class: "found-day" }, where),
    );
    option.addEventListener("pointermove", () => this.#activate([...this.#list.children].indexOf(option), false));
    return option;
  }

  #activate(at, scroll = true) {
    const options = this.#list.children;
    options[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = at;
    const option = options[at];
    option?.setAttribute("aria-selected", "true");
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
    if (scroll) option?.scrollIntoView({ block: "nearest" });
    if (at >= options.length - 2) this.#more();
  }

  #key(event) {
    if (event.isComposing) return;
    const last = this.#list.children.length - 1;
    const to = { ArrowDown: Math.min(last, this.#active + 1), ArrowUp: Math.max(0, this.#active - 1) }[event.key];
    if (event.key === "Escape" && this.#input.value) {
      event.preventDefault();
      event.stopPropagation();
      this.#input.value = "";
      this.#ask();
    } else if (event.key === "Enter" && last >= 0) {
      event.preventDefault();
      this.#open(Math.max(0, this.#active));
    } else if (to !== undefined && last >= 0) {
      event.preventDefault();
      this.#activate(to);
    }
  }

  #open(at) {
    const { id, message } = this.#list.children[at].dataset;
    this.#activate(at);
    this.#options.open(id, message);
    this.#options.leave();
  }
}

/** Every second piece is a word that was looked for. */
function marked(pieces) {
  return pieces.map((piece, i) => (i % 2 ? h("mark", {}, piece) : piece));
}
