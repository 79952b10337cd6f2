/**
 * The chat page: who does what about the conversation that is open.
 *
 * The parts know nothing of each other: the connection brings frames and news, the columns show messages, the composer
 * takes what is written, the sidebar lists, the picker picks, visits open what is to be shown. This module wires them; it is the `host` of the columns.
 */

import { Announcer } from "./announce.js";
import { loadMarkdown } from "./answer.js";
import { Columns } from "./columns.js";
import { Composer } from "./composer.js";
import { $ } from "./dom.js";
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
import { Visits } from "./visits.js";

const RESUME_AGAIN_SECONDS = 2;

class ChatPage {
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
    look: () => this.#visits.look(),
  });
  settings = new SettingsPanel({ say: (text) => this.#announcer.say(text), problem: (text) => this.notice(text) });
  picker = new Picker(() => this.#modelsChanged());
  #composer = new Composer({ send: () => this.#submit(), stop: () => this.#stop(), changed: () => this.changed(), problem: (text) => this.notice(text), say: (text) => this.#announcer.say(text) });
  #columns = new Columns(this);
  #sidebar = new Sidebar({
    open: (id, message) => this.#visits.open(id, { message }),
    leaf: (id) => (id === this.conversation && !this.#columns.threads[0].run && this.#columns.threads[0].leaf) || "",
    deleted: (id) => id === this.conversation && this.#visits.begin(),
    problem: (message) => this.notice(message),
    listed: () => this.#visits.retitle(this.#sidebar.find(this.conversation)?.title),
  });
  #visits = new Visits(
    { columns: this.#columns, sidebar: this.#sidebar, picker: this.picker, settings: this.settings },
    { begun: () => this.#modelsChanged(), focus: () => this.#focus(), notice: (text) => this.notice(text), stop: (answer) => this.connection.stop(answer) },
  );
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
    this.#visits.follow();
    this.#prefill();
    // An empty page loads no Markdown; the first sign of a person fetches it, long before the first answer.
    const soon = () => loadMarkdown().catch(() => {});
    for (const sign of ["pointerdown", "keydown"]) addEventListener(sign, soon, { once: true });
    $("sidebar").addEventListener("pointerover", soon, { once: true }); // perhaps to open a conversation
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
        this.#visits.begin();
        this.#sidebar.leave();
        this.#focus();
      });
    }
    $("temporary").addEventListener("click", () => {
      this.#visits.begin({ temporary: !this.temporary });
      this.#focus();
    });
    startFoot();
    startKeys();
    addEventListener("load", () => navigator.serviceWorker?.register("/sw.js").catch(() => {})); // the site works without it
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

  get conversation() {
    return this.#visits.conversation;
  }

  get temporary() {
    return this.#visits.temporary;
  }

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

  /** Read the open conversation again, soon: it may have gone on elsewhere. */
  reload() {
    this.#news.hear();
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
    if (!this.conversation && message.conversation) this.#visits.stored(message.conversation, message.title);
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
}

new ChatPage();
