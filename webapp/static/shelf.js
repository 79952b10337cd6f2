/**
 * The list of conversations as it is drawn: grouped by day, each row made once and kept, so that thousands stay quick
 * and neither the focus nor the place of the list moves when something in it changes.
 */

import { h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";

const DAY_MS = 86_400_000;
const CHUNK = 60; // rows that are laid out, or left out, together
const NEAR = 1000; // pixels from the end where the next page is read

export class Shelf {
  #element;
  #options;
  #rows = new Map(); // conversation id -> its row
  #groups = new Map(); // what stands together -> {section, list}
  #made = 0;
  #empty = h("p", { class: "side-empty" });
  #active = "";

  /** `options`: open(id), menu(id, button), more() when the end comes near. */
  constructor(element, options) {
    this.#element = element;
    this.#options = options;
    element.append(this.#empty);
    element.addEventListener("scroll", () => this.atEnd && options.more(), { passive: true });
    element.addEventListener("click", (event) => this.#clicked(event));
  }

  /** Show these; `empty` is what is said when there are none, `grouped` whether by day. */
  draw(conversations, { empty }) {
    const rows = new Map();
    const groups = new Map(); // key -> {name, elements}
    const age = ages();
    let name = null;
    let count = 0;
    for (const conversation of conversations) {
      const id = conversation.conversation_id;
      const row = this.#rows.get(id) ?? new Row(conversation);
      row.show(conversation, id === this.#active);
      rows.set(id, row);
      const of = age(conversation);
      if (of !== name) [name, count] = [of, 0];
      const key = `${name} ${Math.floor(count++ / CHUNK)}`;
      if (!groups.has(key)) groups.set(key, { name: key.endsWith(" 0") ? name : "", elements: [] });
      groups.get(key).elements.push(row.element);
    }
    const focused = this.#element.contains(document.activeElement) ? document.activeElement : null;
    for (const [id, row] of this.#rows) if (!rows.has(id)) row.element.remove();
    this.#rows = rows;
    for (const key of this.#groups.keys()) if (!groups.has(key)) this.#groups.delete(key);
    const sections = [...groups].map(([key, group]) => this.#section(key, group));
    arrange(this.#element, [...sections, this.#empty]);
    this.#empty.hidden = conversations.length > 0;
    setText(this.#empty, empty);
    if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
  }

  /** Mark the open conversation. */
  set active(id) {
    this.#rows.get(this.#active)?.mark(false);
    this.#rows.get(id)?.mark(true);
    this.#active = id;
  }

  /** The row of a conversation, if it is shown. */
  row(id) {
    return this.#rows.get(id)?.element;
  }

  /** Whether the end of the list is near what is seen. */
  get atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#element;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  focus(id) {
    this.row(id)?.querySelector("a")?.focus();
  }

  #section(key, { name, elements }) {
    if (!this.#groups.has(key)) {
      const title = name && h("h2", { class: "side-age", id: `age-${++this.#made}` }, name);
      const list = h("ul", name ? { "aria-labelledby": title.id } : {});
      this.#groups.set(key, { section: h("section", {}, title || null, list), list });
    }
    const { section, list } = this.#groups.get(key);
    section.style.setProperty("--rows", elements.length); // so much room it takes while it is out of sight
    arrange(list, elements);
    return section;
  }

  #clicked(event) {
    const id = event.target.closest("[data-id]")?.dataset.id;
    const menu = event.target.closest(".side-menu");
    if (menu) return this.#options.menu(id, menu);
    if (!event.target.closest("a") || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    this.#options.open(id);
  }
}

/** One conversation. */
class Row {
  #name = null;
  #marked = false;
  #title = h("span", { class: "side-title", dir: "auto" });
  #busy = h("span", { class: "side-busy", hidden: true }, h("span", { class: "sr" }, t(", an answer is being written")));
  #link;
  #menu = h("button", { class: "side-menu", type: "button", "aria-haspopup": "menu", "aria-expanded": "false" }, icon("dots"));
  element;

  constructor({ conversation_id: id }) {
    this.#link = h("a", { href: `/c/${id}` }, this.#title, this.#busy);
    this.element = h("li", { class: "side-item", "data-id": id }, this.#link, this.#menu);
  }

  show({ title, requests }, active) {
    const name = title || t("Untitled");
    if (this.#name !== name) {
      this.#name = this.#title.textContent = this.#link.title = name;
      this.#menu.setAttribute("aria-label", t("More: {title}", { title: name }));
    }
    if (this.#busy.hidden !== !requests?.length) this.#busy.hidden = !requests?.length;
    this.mark(active);
  }

  mark(active) {
    if (this.#marked === active) return;
    this.#marked = active;
    if (active) this.#link.setAttribute("aria-current", "page");
    else this.#link.removeAttribute("aria-current");
  }
}

/** Make these the children, in this order, touching only what differs. */
function arrange(parent, children) {
  let at = parent.firstChild;
  for (const child of children) {
    if (child === at) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Tells under which heading a conversation stands today. */
function ages() {
  const now = new Date();
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const language = document.documentElement.lang;
  const months = [true, false].map((short) => new Intl.DateTimeFormat(language, short ? { month: "long" } : { month: "long", year: "numeric" }));
  let [from, to, month] = [0, 0, ""]; // of the last one that was asked for: a list goes down month by month
  return ({ pinned, updated }) => {
    if (pinned) return t("Pinned");
    if (updated >= midnight) return t("Today");
    if (updated >= midnight - DAY_MS) return t("Yesterday");
    if (updated >= midnight - 7 * DAY_MS) return t("Previous 7 days");
    if (updated < from || updated >= to) {
      const then = new Date(updated);
      from = new Date(then.getFullYear(), then.getMonth(), 1).getTime();
      to = new Date(then.getFullYear(), then.getMonth() + 1, 1).getTime();
      month = months[then.getFullYear() === now.getFullYear() ? 0 : 1].format(then);
    }
    return month;
  };
}
