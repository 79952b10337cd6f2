/** Which conversation the page shows: a new one, a temporary one, or one that the server has, at the address that says so. */

import { $, afterPaint, setText } from "./dom.js";
import { t } from "./i18n.js";

export class Visits {
  conversation = ""; // id of the open one; "" for a new chat, and for one that is stored nowhere
  temporary = false;
  #parts;
  #options;

  /** `parts`: columns, sidebar, picker, settings; `options`: begun(), focus(), notice(text), stop(answer). */
  constructor(parts, options) {
    this.#parts = parts;
    this.#options = options;
    addEventListener("popstate", () => this.follow());
  }

  /** Show what the address says. */
  follow() {
    const id = /^\/c\/([\w-]+)$/.exec(location.pathname)?.[1];
    if (id) this.open(id, { push: false });
    else this.begin({ push: false });
  }

  /** A new, empty chat. */
  begin({ push = true, temporary = false } = {}) {
    this.#clear(temporary);
    if (push && location.pathname !== "/") history.pushState(null, "", "/");
    this.#options.focus();
  }

  #clear(temporary) {
    const { columns, sidebar, settings } = this.#parts;
    if (this.temporary) for (const { run } of columns.threads) if (run?.answer) this.#options.stop(run.answer);
    for (const thread of columns.threads) thread.clear();
    this.conversation = "";
    this.temporary = temporary;
    document.body.classList.toggle("temporary", temporary);
    $("temporary").setAttribute("aria-pressed", String(temporary));
    $("temporary-note").hidden = !temporary;
    sidebar.active = "";
    this.retitle("");
    if (!columns.many) settings.show(null);
    this.#options.begun();
  }

  /** What was asked in the new chat is stored: it is a conversation like all others from now on. */
  stored(id, title) {
    this.conversation = id;
    history.pushState(null, "", `/c/${id}`);
    this.#parts.sidebar.active = id;
    this.retitle(title);
  }

  /** Show a stored conversation; `message` is one on the path that is wanted, and comes into view if it is near the end. */
  async open(id, { push = true, message = "" } = {}) {
    const { columns, sidebar } = this.#parts;
    if (push && location.pathname !== `/c/${id}`) history.pushState(null, "", `/c/${id}`);
    if (id !== this.conversation) {
      this.#clear(false);
      this.conversation = id;
    }
    sidebar.active = id;
    sidebar.leave();
    const leaves = columns.restore(id);
    await this.#show(message ? [message, ...leaves.slice(1)] : leaves, true);
    if (message) columns.threads[0].reveal(message);
  }

  /** Read the open conversation again: it may have gone on elsewhere. */
  look() {
    if (this.conversation) this.#show(this.#parts.columns.follow(this.conversation));
  }

  /** Show a path in each column. `afresh`: with the model and the settings that it was asked with last. */
  async #show(leaves, afresh = false) {
    const id = this.conversation;
    const { columns, picker, settings } = this.#parts;
    try {
      // A column whose question has no answer would show another column's: it waits until somebody tries again.
      const waits = (thread) => !afresh && columns.many && thread.stuck;
      const pages = await Promise.all(columns.threads.map((thread, i) => (waits(thread) ? null : openThread(thread, leaves[i] ?? ""))));
      const page = pages.find((found) => found);
      if (id !== this.conversation || !page) return;
      const { conversation, messages } = page;
      this.retitle(conversation.title);
      if (afresh && !columns.many) {
        const last = messages.findLast((message) => message.role === "assistant")?.model;
        if (last) picker.prefer(last);
        settings.show(conversation.settings);
      }
      if (afresh) afterPaint().then(() => this.#options.focus()); // before, the page would be laid out twice
    } catch (error) {
      if (id === this.conversation) this.#failed(id, error);
    }
  }

  #failed(id, error) {
    const { columns, sidebar } = this.#parts;
    if (error.status === 404) {
      history.replaceState(null, "", "/");
      this.begin({ push: false });
      sidebar.refresh();
      return this.#options.notice(t("This conversation does not exist any more, or it is not yours. Here is a new one."));
    }
    this.#options.notice(error.message);
    for (const thread of columns.threads) if (thread.empty) thread.fail(error.message, () => this.open(id, { push: false }));
  }

  /** Say what it is called; undefined is not known yet. */
  retitle(title) {
    if (title === undefined) return;
    document.title = title ? `${title} · FleetChat` : "FleetChat";
    setText($("heading"), title || (this.temporary ? t("Temporary chat") : t("New chat")));
  }
}

async function openThread(thread, leaf) {
  try {
    return await thread.open({ leaf });
  } catch (error) {
    if (!leaf || error.status !== 400) throw error;
    return thread.open(); // what it showed was deleted
  }
}
