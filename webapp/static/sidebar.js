/** The list of saved conversations: open, rename, delete; a column on wide windows and a drawer on narrow ones. */

import { call } from "./api.js";
import { $, h, icon, placeUnder } from "./dom.js";
import { remember } from "./store.js";

const DAY_MS = 86_400_000;
const SOON_MS = 150; // events come in bursts
const narrow = matchMedia("(max-width: 767px)");

export class Sidebar {
  conversations = [];
  #more = false;
  #active = "";
  #target = null; // the conversation whose menu is open
  #menuButton = null;
  #editing = "";
  #timer = 0;
  #opener = null;
  #options;

  /** `options`: open(id), deleted(id), problem(message), listed(). */
  constructor(options) {
    this.#options = options;
    $("side-open").addEventListener("click", () => this.show());
    $("side-close").addEventListener("click", () => this.hide());
    $("backdrop").addEventListener("click", () => this.hide());
    $("sidebar").addEventListener("keydown", (event) => {
      if (!this.#drawn || document.querySelector(":popover-open")) return;
      if (event.key === "Escape" && !this.#editing) this.hide();
      if (event.key === "Tab") keepInside($("sidebar"), event);
    });
    narrow.addEventListener("change", () => this.#arrange(false));
    $("menu").addEventListener("keydown", (event) => this.#menuKey(event));
    $("menu").addEventListener("toggle", (event) => {
      const open = event.newState === "open";
      this.#menuButton?.setAttribute("aria-expanded", String(open));
      if (open) {
        placeUnder($("menu"), this.#menuButton);
        $("menu-rename").focus();
      }
    });
    $("menu-rename").addEventListener("click", () => this.#rename());
    $("menu-delete").addEventListener("click", () => this.#askDelete());
    $("delete-cancel").addEventListener("click", () => $("delete").close());
    $("delete-confirm").addEventListener("click", () => this.#delete());
    this.#arrange(false);
  }

  /** Read the list again, soon. */
  refresh() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#load(), SOON_MS);
  }

  /** Mark the open conversation. */
  set active(id) {
    this.#active = id;
    for (const link of $("conversations").querySelectorAll(".side-item a")) {
      if (link.dataset.id === id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  /** Show it: the drawer takes the focus and keeps it. */
  show() {
    this.#opener = document.activeElement;
    if (!narrow.matches) {
      delete document.documentElement.dataset.sidebar;
      remember("sidebar", "shown");
    }
    this.#arrange(true);
    $("side-close").focus();
  }

  /** Hide it, and give the focus back. */
  hide() {
    const drawn = this.#drawn;
    if (!narrow.matches) {
      document.documentElement.dataset.sidebar = "hidden";
      remember("sidebar", "hidden");
    }
    this.#arrange(false);
    if (!narrow.matches) $("side-open").focus();
    else if (drawn) (this.#opener?.isConnected ? this.#opener : $("side-open")).focus();
  }

  /** After a choice in the drawer: out of the way, without moving the focus. */
  leave() {
    if (this.#drawn) this.#arrange(false);
  }

  get #drawn() {
    return document.body.classList.contains("drawn");
  }

  #arrange(drawn) {
    const over = drawn && narrow.matches;
    document.body.classList.toggle("drawn", over);
    $("backdrop").hidden = !over;
    $("main").inert = $("skip").inert = over;
    // Out of sight is out of reach for the keyboard, too.
    $("sidebar").inert = narrow.matches ? !over : document.documentElement.dataset.sidebar === "hidden";
    $("side-open").setAttribute("aria-expanded", String(!$("sidebar").inert));
  }

  async #load(before) {
    try {
      const { conversations, after: more } = await call("GET", before ? `/conversations?before=${before}` : "/conversations");
      if (before) {
        this.conversations = [...this.conversations, ...conversations.filter((c) => !this.find(c.conversation_id))];
        this.#more = more;
      } else {
        // Pages that were read before stay: what is older than this page cannot have changed its place.
        const oldest = conversations.at(-1)?.updated ?? 0;
        const fresh = new Set(conversations.map((c) => c.conversation_id));
        const older = more ? this.conversations.filter((c) => c.updated < oldest && !fresh.has(c.conversation_id)) : [];
        this.#more = older.length ? this.#more : more;
        this.conversations = [...conversations, ...older];
      }
      this.#draw();
      this.#options.listed();
    } catch (error) {
      if (before) this.#options.problem(error.message);
      // Else the connection is away, and the page says so already.
    }
  }

  /** The listed conversation with this id, if it is listed. */
  find(id) {
    return this.conversations.find((conversation) => conversation.conversation_id === id);
  }

  #draw() {
    if (this.#editing) return; // it is drawn when the name is written
    const list = $("conversations");
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const again = focused && { id: focused.closest("[data-id]")?.dataset.id, menu: focused.tagName === "BUTTON" };
    const groups = group(this.conversations);
    const parts = [...groups].flatMap(([name, conversations], i) => {
      const id = `age-${i}`;
      return [
        h("h2", { class: "side-age", id }, name),
        h("ul", { "aria-labelledby": id }, ...conversations.map((conversation) => this.#item(conversation))),
      ];
    });
    if (!parts.length) parts.push(h("p", { class: "side-empty" }, "Your conversations will be listed here."));
    if (this.#more) {
      const more = h("button", { class: "quiet-button", type: "button", onclick: () => this.#load(this.conversations.at(-1).updated) }, "Show older ones");
      parts.push(more);
    }
    list.replaceChildren(...parts);
    if (again?.id) list.querySelector(`.side-item[data-id="${CSS.escape(again.id)}"] ${again.menu ? "button" : "a"}`)?.focus();
  }

  #item({ conversation_id: id, title, requests }) {
    const name = title || "Untitled";
    const link = h("a", { href: `/c/${id}`, "data-id": id, title: name, "aria-current": id === this.#active ? "page" : null }, h("span", { class: "side-title" }, name));
    if (requests.length) link.append(h("span", { class: "side-busy" }, h("span", { class: "sr" }, ", an answer is being written")));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      this.#options.open(id);
    });
    const menu = h("button", { class: "side-menu", type: "button", "aria-label": `Rename or delete: ${name}`, "aria-haspopup": "menu", "aria-expanded": "false" }, icon("dots"));
    menu.popoverTargetElement = $("menu");
    menu.addEventListener("click", () => {
      this.#target = id;
      this.#menuButton = menu;
    });
    return h("li", { class: "side-item", "data-id": id }, link, menu);
  }

  #menuKey(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      (document.activeElement === $("menu-rename") ? $("menu-delete") : $("menu-rename")).focus();
    } else if (event.key === "Tab") {
      $("menu").hidePopover();
    }
  }

  #rename() {
    $("menu").hidePopover();
    const id = this.#target;
    const conversation = this.find(id);
    const item = $("conversations").querySelector(`.side-item[data-id="${CSS.escape(id)}"]`);
    if (!conversation || !item) return;
    const input = h("input", { class: "side-input", "aria-label": "New name", maxlength: 60 });
    input.value = conversation.title;
    this.#editing = id;
    let done = false;
    const finish = async (save) => {
      if (done) return;
      done = true;
      this.#editing = "";
      const title = input.value.trim();
      if (save && title && title !== conversation.title) {
        const before = conversation.title;
        conversation.title = title;
        call("PATCH", `/conversations/${id}`, { title }).catch((error) => {
          conversation.title = before;
          this.#draw();
          this.#options.problem(error.message);
        });
      }
      this.#draw();
      this.#options.listed();
      $("conversations").querySelector(`.side-item[data-id="${CSS.escape(id)}"] a`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener("blur", () => finish(true));
    item.replaceChildren(input);
    input.focus();
    input.select();
  }

  #askDelete() {
    $("menu").hidePopover();
    const title = this.find(this.#target)?.title || "Untitled";
    $("delete-text").textContent = `“${title}” and its answers are removed for good.`;
    $("delete").showModal();
    $("delete-cancel").focus();
  }

  async #delete() {
    $("delete").close();
    const id = this.#target;
    try {
      await call("DELETE", `/conversations/${id}`);
    } catch (error) {
      if (error.status !== 404) return this.#options.problem(error.message);
    }
    this.conversations = this.conversations.filter((conversation) => conversation.conversation_id !== id);
    this.#draw();
    this.#options.deleted(id);
  }
}

/** Tab goes round in the drawer. */
function keepInside(element, event) {
  const stops = [...element.querySelectorAll("a, button, input")].filter((stop) => stop.checkVisibility());
  const [from, to] = event.shiftKey ? [stops[0], stops.at(-1)] : [stops.at(-1), stops[0]];
  if (document.activeElement !== from) return;
  event.preventDefault();
  to.focus();
}

function age({ updated }) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return "Today";
  if (updated >= midnight - DAY_MS) return "Yesterday";
  if (updated >= midnight - 6 * DAY_MS) return "Last 7 days";
  return "Older";
}

function group(conversations) {
  const groups = new Map();
  for (const conversation of conversations) groups.set(age(conversation), [...(groups.get(age(conversation)) ?? []), conversation]);
  return groups;
}
