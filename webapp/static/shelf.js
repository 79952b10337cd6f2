/**
 * The list of conversations as it is drawn: grouped by day, each row made once and kept, so that thousands stay quick
 * and neither the focus nor the place of the list moves when something in it changes.
 */

import { h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";

const DAY_MS = 86_400_000;
const NEAR = 1000; // pixels from the end where the next page is read

export class Shelf {
  #element;
  #options;
  #rows = new Map(); // conversation id -> its row
  #groups = new Map(); // name -> {section, list}
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
  draw(conversations, { empty, grouped = true }) {
    const rows = new Map();
    const groups = new Map();
    for (const conversation of conversations) {
      const id = conversation.conversation_id;
      const row = this.#rows.get(id) ?? new Row(conversation);
      row.show(conversation, id === this.#active);
      rows.set(id, row);
      const name = grouped ? age(conversation) : "";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(row.element);
    }
    const focused = this.#element.contains(document.activeElement) ? document.activeElement : null;
    for (const [id, row] of this.#rows) if (!rows.has(id)) row.element.remove();
    this.#rows = rows;
    const sections = [...groups].map(([name, elements]) => this.#section(name, elements));
    for (const [name, { section }] of this.#groups) if (!groups.has(name)) section.remove() ?? this.#groups.delete(name);
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

  #section(name, elements) {
    if (!this.#groups.has(name)) {
      const title = h("h2", { class: "side-age", id: `age-${name.replace(/\W+/g, "-")}-${this.#groups.size}`, hidden: !name }, name);
      const list = h("ul", name ? { "aria-labelledby": title.id } : {});
      this.#groups.set(name, { section: h("section", {}, title, list), list });
    }
    const { section, list } = this.#groups.get(name);
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
    if (this.#title.textContent !== name) {
      this.#title.textContent = this.#link.title = name;
      this.#menu.setAttribute("aria-label", t("More: {title}", { title: name }));
    }
    this.#busy.hidden = !requests?.length;
    this.mark(active);
  }

  mark(active) {
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

function age({ pinned, updated }) {
  if (pinned) return t("Pinned");
  const now = new Date();
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (updated >= midnight) return t("Today");
  if (updated >= midnight - DAY_MS) return t("Yesterday");
  if (updated >= midnight - 7 * DAY_MS) return t("Previous 7 days");
  const then = new Date(updated);
  const year = then.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return month(then, year);
}

const months = new Map();

function month(date, year) {
  const key = `${date.getFullYear()}-${date.getMonth()}`;
  if (!months.has(key)) months.set(key, new Intl.DateTimeFormat(document.documentElement.lang, { month: "long", year }).format(date));
  return months.get(key);
}
