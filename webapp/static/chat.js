/**
 * The chat page: which conversation is open, and who does what about it.
 *
 * The parts know nothing of each other: the connection brings frames and news, the columns show messages, the composer
 * takes what is written, the sidebar lists, the picker picks. This module wires them; it is the `host` of the columns.
 */

import { Announcer } from "./announce.js";
import { loadMarkdown } from "./answer.js";
import { Columns } from "./columns.js";
import { Composer } from "./composer.js";
import { $, setText } from "./dom.js";
import { startFoot } from "./foot.js";
import { Gauge } from "./gauge.js";
import { Hero } from "./hero.js";
import { t } from "./i18n.js";
import { startKeys } from "./keys.js";
import { News } from "./news.js";
import { Notice } from "./notice.js";
import { valuesOf } from "./parameters.js";
import { Picker, usable } from "./picker.js";
import { obstacle } from "./sayings.js";
import { SettingsPanel } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Connection } from "./stream.js";

const RESUME_AGAIN_SECONDS = 2;

class ChatPage {
  conversation = ""; // id of the open one; "" for a new chat, and for one that is stored nowhere
  temporary = false;
  runs = new Map(); // ref -> run that the server has not answered yet, also of conversations that were left
  #connectedBefore = false;
  #wanted = new URLSearchParams(location.search).get("model"); // by a link
  #announcer = new Announcer($("live"));
  #gauge = new Gauge($("gauge"));
  #notice = new Notice();
  #hero = new Hero((text) => this.ask({ text, files: [] }));
  #news = new News({
    ours: (id) => this.#columns.threads.some((thread) => thread.run?.request_id === id || thread.leaf === id),
    busy: () => this.runs.size > 0, // what was asked comes first
    look: () => this.conversation && this.#reopen(this.#columns.follow(this.conversation)),
  });
  settings = new SettingsPanel({ say: (text) => this.#announcer.say(text), problem: (text) => this.notice(text) });
  picker = new Picker(() => this.#modelsChanged());
  #composer = new Composer({ send: () => this.#submit(), stop: () => this.#stop(), changed: () => this.changed(), problem: (text) => this.notice(text), say: (text) => this.#announcer.say(text) });
  #columns = new Columns(this);
  #sidebar = new Sidebar({
    open: (id, message) => this.#open(id, { message }),
    leaf: (id) => (id === this.conversation && !this.#columns.threads[0].run && this.#columns.threads[0].leaf) || "",
    deleted: (id) => id === this.conversation && this.#begin(),
    problem: (message) => this.notice(message),
    listed: () => this.#retitle(this.#sidebar.find(this.conversation)?.title),
  });
  connection;

  constructor() {
    this.#listen();
    const address = new URL("/ws", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.connection = new Connection(address, {
      models: (models) => {
        this.picker.update(models);
        this.#askedFor();
      },
      event: (event) => this.#happened(event),
      accepted: (message) => this.#accepted(message),
      refused: (error) => this.#refused(error),
      failed: (error) => this.#failed(error),
      connected: () => this.#connected(),
      away: () => ($("connection").hidden = false),
    });
    this.#sidebar.refresh();
    this.#visit();
    this.#prefill();
    // An empty page loads no Markdown; the first sign of a person fetches it, long before the first answer.
    for (const sign of ["pointerdown", "keydown"]) addEventListener(sign, () => loadMarkdown().catch(() => {}), { once: true });
  }

  // ---- Links ----

  /** `/?q=TEXT` writes into the message box and sends nothing: a link may come from anybody, and asking costs. */
  #prefill() {
    const text = new URLSearchParams(location.search).get("q");
    if (location.search) history.replaceState(null, "", location.pathname);
    if (!text) return;
    this.#composer.write({ text });
    this.#composer.focus();
  }

  /** `/?model=NAME`, as soon as the models are known. */
  #askedFor() {
    const name = this.#wanted;
    this.#wanted = "";
    if (!name) return;
    const model = this.picker.find(name);
    if (!model) this.notice(t("The link asks for a model called {model}, which is not here.", { model: name }));
    else if (usable(model)) this.picker.prefer(name);
    else this.notice(this.obstacle(model));
  }

  // ---- Input ----

  #listen() {
    document.addEventListener("keydown", (event) => this.#key(event), true);
    for (const id of ["home", "side-new", "bar-new"]) {
      $(id).addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
        event.preventDefault();
        this.#begin();
        this.#sidebar.leave();
        this.#focus();
      });
    }
    $("temporary").addEventListener("click", () => {
      this.#begin({ temporary: !this.temporary });
      this.#focus();
    });
    startFoot();
    startKeys();
    addEventListener("load", () => navigator.serviceWorker?.register("/sw.js").catch(() => {})); // the site works without it
    addEventListener("popstate", () => this.#visit());
    addEventListener("storage", ({ key }) => key === "columns" && this.conversation && this.#columns.differs(this.conversation) && this.reload());
  }

  #key(event) {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      // What lies on top closes first; then Escape stops the answers.
      const covered = document.querySelector(":popover-open, dialog[open]") || document.body.classList.contains("drawn");
      if (covered || event.target.closest?.(".side-input, .question-edit")) return;
      this.#stop();
    }
  }

  #submit() {
    if (this.#composer.empty) return this.#composer.focus();
    if (this.#running.length) return this.busy();
    const blocked = this.#obstacle();
    if (blocked) return this.#composer.hint(blocked, true);
    const question = this.#composer.value;
    this.#composer.write({ text: "" });
    this.ask(question);
  }

  #stop() {
    for (const thread of this.#running) thread.stop();
  }

  #focus() {
    // On a phone the keyboard comes up only when it is asked for.
    if (matchMedia("(pointer: fine)").matches) this.#composer.focus();
  }

  // ---- What the columns ask of the page ----

  get models() {
    return this.picker.models;
  }

  get known() {
    return this.picker.known;
  }

  modelOf(thread) {
    return this.#columns.modelOf(thread);
  }

  obstacle(model) {
    return obstacle(model, this.known);
  }

  shows(request_id) {
    return this.#columns.threads.some(({ run }) => run?.request_id === request_id);
  }

  /** Ask in all columns, or in some: where columns show the same messages, they answer the same question. */
  ask(question, threads = this.#columns.threads) {
    this.#notice.hide(); // it was about what went before
    for (const thread of threads) thread.dropRefused();
    const groups = new Map();
    for (const thread of threads) groups.set(thread.leaf, [...(groups.get(thread.leaf) ?? []), thread]);
    for (const group of this.temporary ? threads.map((thread) => [thread]) : groups.values()) {
      const [first, ...others] = group;
      const run = first.ask(question, { companions: others.map((thread) => thread.accompany(question)) });
      run.threads = group;
    }
    this.#composer.focus({ preventScroll: true });
  }

  send(run) {
    const { conversation, temporary } = this;
    this.connection.ask(run.toMessage({ conversation, temporary, settings: valuesOf(this.#columns.choicesOf(run.thread), this.picker.find(run.model)) }));
  }

  /** Put something back into the message box, unless there is something in it. */
  compose(question) {
    if (this.#composer.empty) this.#composer.write(question);
    this.#composer.focus();
  }

  /** Something was asked; the button that did it may be gone. */
  started() {
    if (document.activeElement === document.body) this.#focus();
  }

  busy() {
    this.#composer.hint($("connection").hidden ? t("Wait for the answer to end, or stop it with Esc.") : t("The connection is away. The answer goes on when it is back, and then you can write again."), true);
  }

  notice(message) {
    this.#notice.show(message);
  }

  /** A column shows something else, or does. */
  changed() {
    if (!this.connection) return; // the page is still being put together
    const running = this.#running;
    const { many, threads } = this.#columns;
    $("hero").hidden = many || !threads[0].empty || this.conversation !== "";
    const blocked = this.#obstacle();
    if (!running.length) this.#composer.hint($("hero").hidden && this.known ? blocked : ""); // else the greeting says it
    this.#composer.show({ running: running.length > 0, stopping: running.length > 0 && running.every(({ run }) => run.stopping), ready: !blocked });
    const fullest = threads.map((thread) => [thread.used, this.modelOf(thread)?.context ?? 0]).sort(([a, x], [b, y]) => b / (y || 1) - a / (x || 1))[0];
    this.#gauge.show(...fullest);
    this.#columns.refresh();
  }

  /** A column shows another path. */
  moved() {
    this.#columns.keep();
  }

  /** An answer has ended. */
  finished() {
    this.#columns.keep();
    if (this.#columns.many) this.reload(); // it is a version in the other columns, too
  }

  /** One column was kept, the others are gone. */
  chosen(thread) {
    thread.remember();
    this.#modelsChanged();
  }

  get #running() {
    return this.#columns.threads.filter(({ run }) => run);
  }

  #obstacle() {
    for (const thread of this.#columns.threads) {
      const model = this.modelOf(thread);
      if (!usable(model)) return this.obstacle(model);
    }
    return "";
  }

  // ---- What the server says ----

  #accepted(message) {
    const run = this.runs.get(message.ref);
    this.runs.delete(message.ref);
    this.#sidebar.refresh();
    if (!run || run !== run.thread.run) return;
    if (!this.conversation && message.conversation) {
      this.conversation = message.conversation;
      history.pushState(null, "", `/c/${this.conversation}`);
      this.#sidebar.active = this.conversation;
      this.#retitle(message.title);
    }
    run.thread.accepted(run, message);
    this.#columns.keep();
  }

  #refused(error) {
    const run = this.runs.get(error.ref);
    this.runs.delete(error.ref);
    run?.thread.refused(run, error);
  }

  #failed(error) {
    const { request_id, message, code, status, retry_after } = error;
    const answer = this.connection.answers.get(request_id);
    if (!request_id) return this.notice(message);
    if (!answer) return;
    if (code === "worker_lost" || status === 404) {
      this.connection.answers.delete(request_id);
      this.#columns.threads.find(({ run }) => run?.request_id === request_id)?.lost();
    } else {
      setTimeout(() => this.connection.answers.has(request_id) && this.connection.resume(answer), 1000 * (retry_after ?? RESUME_AGAIN_SECONDS));
    }
  }

  /** Something happened in one of this person's conversations, in any tab. */
  #happened({ conversation, request_id }) {
    this.#sidebar.refresh();
    if (this.conversation && (!conversation || conversation === this.conversation)) this.#news.hear(request_id);
  }

  #connected() {
    $("connection").hidden = true;
    if (this.#connectedBefore) {
      this.#sidebar.refresh();
      this.reload();
    }
    this.#connectedBefore = true;
    this.changed();
  }

  #modelsChanged() {
    if (!this.#columns.many) this.settings.model = this.picker.model;
    this.#hero.show(this.picker.model, this.known);
    for (const thread of this.#columns.threads) thread.modelsChanged();
  }

  // ---- Conversations ----

  /** Show what the address says. */
  #visit() {
    const id = /^\/c\/([\w-]+)$/.exec(location.pathname)?.[1];
    if (id) this.#open(id, { push: false });
    else this.#begin({ push: false });
  }

  /** A new, empty chat. */
  #begin({ push = true, temporary = false } = {}) {
    for (const { run } of this.temporary ? this.#running : []) if (run.answer) this.connection.stop(run.answer);
    for (const thread of this.#columns.threads) thread.clear();
    this.conversation = "";
    this.temporary = temporary;
    document.body.classList.toggle("temporary", temporary);
    $("temporary").setAttribute("aria-pressed", String(temporary));
    $("temporary-note").hidden = !temporary;
    this.#sidebar.active = "";
    if (push && location.pathname !== "/") history.pushState(null, "", "/");
    this.#retitle("");
    if (!this.#columns.many) this.settings.show(null);
    this.#modelsChanged();
    this.#focus();
  }

  /** Show a stored conversation; `message` is one on the path that is wanted, and comes into view if it is near the end. */
  async #open(id, { push = true, message = "" } = {}) {
    if (push && location.pathname !== `/c/${id}`) history.pushState(null, "", `/c/${id}`);
    if (id !== this.conversation) {
      this.#begin({ push: false });
      this.conversation = id;
    }
    this.#sidebar.active = id;
    this.#sidebar.leave();
    const leaves = this.#columns.restore(id);
    await this.#reopen(message ? [message, ...leaves.slice(1)] : leaves, true);
    if (message) this.#columns.threads[0].reveal(message);
  }

  /** Read the open conversation again, soon: it may have gone on elsewhere. */
  reload() {
    this.#news.hear();
  }

  /** Show a path in each column. `afresh`: with the model and the settings that it was asked with last. */
  async #reopen(leaves, afresh = false) {
    const id = this.conversation;
    try {
      // A column whose question has no answer would show another column's: it waits until somebody tries again.
      const waits = (thread) => !afresh && this.#columns.many && thread.stuck;
      const pages = await Promise.all(this.#columns.threads.map((thread, i) => (waits(thread) ? null : this.#openThread(thread, leaves[i] ?? ""))));
      const page = pages.find((found) => found);
      if (id !== this.conversation || !page) return;
      const { conversation, messages } = page;
      this.#retitle(conversation.title);
      if (afresh && !this.#columns.many) {
        const last = messages.findLast((message) => message.role === "assistant")?.model;
        if (last) this.picker.prefer(last);
        this.settings.show(conversation.settings);
      }
      if (afresh) this.#focus();
    } catch (error) {
      if (id === this.conversation) this.#openFailed(id, error);
    }
  }

  async #openThread(thread, leaf) {
    try {
      return await thread.open({ leaf });
    } catch (error) {
      if (!leaf || error.status !== 400) throw error;
      return thread.open(); // what it showed was deleted
    }
  }

  #openFailed(id, error) {
    if (error.status === 404) {
      history.replaceState(null, "", "/");
      this.#begin({ push: false });
      this.#sidebar.refresh();
      return this.notice(t("This conversation does not exist any more, or it is not yours. Here is a new one."));
    }
    this.notice(error.message);
    for (const thread of this.#columns.threads) if (thread.empty) thread.fail(error.message, () => this.#open(id, { push: false }));
  }

  #retitle(title) {
    if (title === undefined) return;
    document.title = title ? `${title} · FleetChat` : "FleetChat";
    setText($("heading"), title || (this.temporary ? t("Temporary chat") : t("New chat")));
  }
}

new ChatPage();
