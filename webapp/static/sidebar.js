/**
 * The sidebar: a column on wide windows and a drawer on narrow ones, with the list of conversations and its views.
 *
 * The list is read a page at a time, as its end comes near. What changes anywhere reaches it by `refresh`, which reads
 * again what has been read. What is seldom needed (search, tags, links, files) is loaded when somebody asks for it.
 */

import { call } from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { Shelf } from "./shelf.js";
import { remember } from "./store.js";

const SOON_MS = 150; // events come in bursts
const PAGE = 60;
const MOST = 500; // conversations that are read again at once
const narrow = matchMedia("(max-width: 767px)");

export class Sidebar {
  conversations = [];
  tags = [];
  #after = ""; // where the next page begins
  #view = { archived: false, tag: "" };
  #reading = 0; // counts what was asked for, so that a late answer is recognised
  #loading = false;
  #editing = false;
  #timer = 0;
  #opener = null;
  #search = null;
  #active = "";
  #options;
  #shelf;

  /** `options`: open(id, message), deleted(id), problem(message), listed(). */
  constructor(options) {
    this.#options = options;
    this.#shelf = new Shelf($("conversations"), {
      open: (id) => options.open(id),
      menu: (id, button) => this.#menu(id, button),
      more: () => this.#more(),
    });
    $("side-open").addEventListener("click", () => this.show());
    $("side-close").addEventListener("click", () => this.hide());
    $("backdrop").addEventListener("click", () => this.hide());
    $("sidebar").addEventListener("keydown", (event) => {
      if (!this.#drawn || document.querySelector(":popover-open, dialog[open]")) return;
      if (event.key === "Escape" && !this.#editing && !event.defaultPrevented) this.hide();
      if (event.key === "Tab") keepInside($("sidebar"), event);
    });
    narrow.addEventListener("change", () => this.#arrange(false));
    $("where-back").addEventListener("click", () => this.look({ archived: false, tag: "" }));
    $("data").addEventListener("click", () => this.#data());
    $("search").addEventListener("focus", () => this.#searching());
    $("search-keys").textContent = /Mac|iP/.test(navigator.platform) ? "⌘K" : t("Ctrl K");
    this.#arrange(false);
  }

  /** Read the list again, soon. */
  refresh() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#load(), SOON_MS);
  }

  /** Show another part: the archive, or what has a tag. */
  look(view) {
    this.#view = { ...this.#view, ...view };
    this.conversations = [];
    this.#after = "";
    $("conversations").scrollTop = 0;
    this.#load();
  }

  /** Mark the open conversation. */
  set active(id) {
    this.#active = id;
    this.#shelf.active = id;
  }

  get active() {
    return this.#active;
  }

  /** The listed conversation with this id, if it is listed. */
  find(id) {
    return this.conversations.find((conversation) => conversation.conversation_id === id);
  }

  /** Change what is shown of one, before the server has said that it took it. */
  alter(id, changes) {
    this.conversations = changes ? this.conversations.map((c) => (c.conversation_id === id ? { ...c, ...changes } : c)) : this.conversations.filter((c) => c.conversation_id !== id);
    this.#draw();
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

  /** Write a title in its row. */
  rename(id) {
    const { title } = this.find(id) ?? {};
    const row = this.#shelf.row(id);
    if (title === undefined || !row) return;
    const input = h("input", { class: "side-input", "aria-label": t("New name"), maxlength: 60, dir: "auto" });
    input.value = title;
    this.#editing = true;
    const finish = (save) => {
      if (!this.#editing) return;
      this.#editing = false;
      const written = input.value.trim();
      input.remove();
      row.classList.remove("editing");
      this.#shelf.focus(id);
      if (!save || !written || written === title) return this.#draw();
      this.alter(id, { title: written });
      this.#options.listed();
      call("PATCH", `/conversations/${id}`, { title: written }).catch((error) => {
        this.alter(id, { title });
        this.#options.listed();
        this.#options.problem(error.message);
      });
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
    row.classList.add("editing");
    row.append(input);
    input.focus();
    input.select();
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

  // ---- The list ----

  async #load(before = "") {
    const { archived, tag } = this.#view;
    const turn = before ? this.#reading : ++this.#reading;
    const query = new URLSearchParams({ ...(archived && { archived: 1 }), ...(tag && { tag }) });
    if (before) query.set("before", before);
    else query.set("count", Math.min(MOST, Math.max(PAGE, Math.ceil(this.conversations.length / PAGE) * PAGE)));
    try {
      const { conversations, after, tags } = await call("GET", `/conversations?${query}`);
      if (turn !== this.#reading) return;
      if (before) {
        const known = new Set(this.conversations.map((c) => c.conversation_id));
        this.conversations = [...this.conversations, ...conversations.filter((c) => !known.has(c.conversation_id))];
        this.#after = after;
      } else {
        this.tags = tags;
        // What was read beyond this page stays: it is older, so it has not changed its place.
        const oldest = after ? conversations.at(-1).updated : -1;
        const fresh = new Set(conversations.map((c) => c.conversation_id));
        const older = after ? this.conversations.filter((c) => !c.pinned && c.updated < oldest && !fresh.has(c.conversation_id)) : [];
        if (!older.length) this.#after = after;
        this.conversations = [...conversations, ...older];
      }
      this.#draw();
      this.#options.listed();
    } catch (error) {
      if (before) this.#options.problem(error.message);
      // Else the connection is away, and the page says so already.
    }
  }

  async #more() {
    if (this.#loading) return;
    this.#loading = true;
    while (this.#after && this.#shelf.atEnd) {
      const [from, turn] = [this.#after, this.#reading];
      await this.#load(from);
      if (from === this.#after && turn === this.#reading) break; // it could not be read
    }
    this.#loading = false;
  }

  #draw() {
    if (this.#editing) return; // it is drawn when the name is written
    const { archived, tag } = this.#view;
    const empty = archived ? t("Nothing is archived.") : tag ? t("Nothing has this tag any more.") : t("Your conversations will be listed here.");
    this.#shelf.draw(this.conversations, { empty });
    $("where").hidden = !archived;
    this.#chips();
    this.#more();
  }

  #chips() {
    const { tag } = this.#view;
    const names = tag && !this.tags.includes(tag) ? [tag, ...this.tags] : this.tags;
    $("tags").hidden = !names.length;
    const shown = [...$("tags").children].map((chip) => chip.textContent).join("\n");
    if (shown !== names.join("\n")) {
      const chip = (name) => h("button", { class: "tag", type: "button", dir: "auto", onclick: () => this.look({ tag: this.#view.tag === name ? "" : name }) }, name);
      $("tags").replaceChildren(...names.map(chip));
    }
    for (const chip of $("tags").children) chip.setAttribute("aria-pressed", String(chip.textContent === tag));
  }

  // ---- What is loaded when it is needed ----

  async #menu(id, button) {
    const { openMenu } = await this.#part(import("./conversation.js"));
    openMenu(this, this.#options, this.find(id), button);
  }

  async #data() {
    const { openData } = await this.#part(import("./transfer.js"));
    openData(this, this.#options, $("data"));
  }

  async #searching() {
    if (this.#search) return;
    this.#search = this.#part(import("./search.js")).then(({ Search }) => new Search({ open: (id, message) => this.#options.open(id, message), leave: () => this.leave() }));
    this.#search.catch(() => (this.#search = null));
  }

  #part(loading) {
    return loading.catch((error) => {
      this.#options.problem(t("A part of this page could not be loaded. Check your connection, then reload the page."));
      throw error;
    });
  }
}

/** Tab goes round in the drawer, and through a notice that lies over it. */
function keepInside(element, event) {
  const stops = [...element.querySelectorAll("a, button, input"), ...document.querySelectorAll(".toast button")].filter((stop) => stop.checkVisibility());
  const [from, to] = event.shiftKey ? [stops[0], stops.at(-1)] : [stops.at(-1), stops[0]];
  if (document.activeElement !== from) return;
  event.preventDefault();
  to.focus();
}
