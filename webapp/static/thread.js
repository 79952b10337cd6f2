/**
 * One column: the path through a conversation that is shown in it, and at most one answer under way at its end.
 *
 * The path is a list of nodes {id, role, parent, versions, view, content, …}; what the server says of it is laid over
 * what is shown, so that nothing is drawn again that is there already. What a column cannot know by itself (the model,
 * the settings, the conversation) it asks its `host`, the page.
 */

import { Announcer } from "./announce.js";
import { AnswerView, contentOf, loadMarkdown } from "./answer.js";
import { call } from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { usable } from "./picker.js";
import { QuestionView } from "./question.js";
import { newRef, Run } from "./run.js";
import { waitSentence } from "./sayings.js";
import { Follower } from "./scroll.js";

const FIRST = 16; // messages that are read when a conversation is opened
const PAGE = 40; // and of those before them
const MOST = 200; // and when another version is looked at, which may be far up
const NEAR_TOP = 600; // pixels
const MENU_MODELS = 8;

export class Thread {
  nodes = [];
  run = null;
  loud = true; // whether its answers are read out while they are written
  #host;
  #scroller;
  #turns;
  #follower;
  #announcer = new Announcer($("live"));
  #more = false; // there are earlier messages on the server
  #reading = false; // them
  #opening = 0; // counts what was opened, so that a late answer of the server is recognised
  #refused = null; // a turn that the server did not take; it goes with the next one
  #loose = null; // a view that says that the last question has no answer
  #said = "";

  constructor(host, scroller, turns, latest) {
    this.#host = host;
    this.#scroller = scroller;
    this.#turns = turns;
    this.#follower = new Follower(scroller, turns, latest);
    scroller.addEventListener("scroll", () => this.#readEarlier(), { passive: true });
  }

  /** Id of the last stored message; "" in an empty chat. */
  get leaf() {
    return this.nodes.at(-1)?.id ?? "";
  }

  get empty() {
    return !this.#turns.childElementCount;
  }

  /** The tokens that the last answer took, prompt and all. */
  get used() {
    const { prompt_tokens = 0, completion_tokens = 0 } = this.nodes.findLast((node) => node.usage)?.usage ?? {};
    return prompt_tokens + completion_tokens;
  }

  // ---- Asking ----

  /** A new question and its answer; `at` is the place of the question whose newer version it is. */
  ask(question, { at = this.nodes.length, companions = [] } = {}) {
    const before = this.nodes.slice(0, at);
    const run = this.#newRun("ask", { question, before, parent: before.at(-1)?.id ?? "", companions, versions: this.nodes[at]?.versions ?? [] });
    run.asked = this.#questionView(question, run);
    this.#start(run, at);
    this.#send(run);
    return run;
  }

  /** The answer to a question that another column asks: it begins when that one is accepted. */
  accompany(question) {
    const run = this.#newRun("regenerate", { question, before: [...this.nodes] });
    run.asked = this.#questionView(question, run);
    this.#start(run, this.nodes.length);
    return run;
  }

  /** Another answer, in the place of one or below the last question. */
  again(node = null, model = this.#host.modelOf(this)) {
    if (this.run) return this.#host.busy();
    if (!usable(model)) return this.#host.notice(this.#host.obstacle(model));
    const at = node ? this.nodes.indexOf(node) : this.nodes.length;
    const asked = this.nodes[at - 1];
    if (asked?.role !== "user") return;
    const { text, files } = asked.content;
    this.#send(this.#start(this.#newRun("regenerate", { model: model.name, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node?.versions ?? [] }), at));
  }

  #goOn(node) {
    if (this.run) return this.#host.busy();
    const at = this.nodes.indexOf(node);
    const asked = this.nodes[at - 1];
    const { text, files } = asked.content;
    const begun = { id: node.id, content: node.content };
    this.#send(this.#start(this.#newRun("continue", { begun, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node.versions }), at));
  }

  #newRun(kind, what) {
    const run = new Run({ kind, model: this.#host.modelOf(this)?.name ?? "", ...what, thread: this });
    run.view = this.#answerView(run);
    return run;
  }

  #start(run, at) {
    loadMarkdown().catch(() => {}); // the view shows plain text then
    this.dropRefused();
    this.#cutLoose();
    run.cut = this.nodes.splice(at);
    for (const node of run.cut) node.view.element.remove();
    if (run.asked) this.#turns.append(run.asked.element);
    this.#turns.append(run.view.element);
    this.run = run;
    this.#host.runs.set(run.ref, run);
    this.#announcer.begin();
    this.#said = "";
    this.#show(run);
    this.refreshViews();
    this.#follower.toEnd();
    return run;
  }

  #send(run) {
    run.sent = true;
    this.#host.send(run);
  }

  /** The server has taken it. */
  accepted(run, { request_id, message, parent }) {
    if (run !== this.run) return;
    run.request_id = request_id;
    run.message = message || run.message || newRef(); // a chat that is stored nowhere names its messages itself
    for (const companion of run.companions) {
      companion.message = run.message;
      if (companion === companion.thread.run) companion.thread.#send(companion);
    }
    run.companions = [];
    if (run.asked) this.#stored(run, parent);
    this.#attach(run);
    if (run.stopping) this.#host.connection.stop(run.answer);
  }

  /** The question of a run is stored: it is a node like all others. */
  #stored(run, parent) {
    this.nodes.push({ id: run.message, role: "user", parent, versions: this.#versions(run, run.message), view: run.asked, content: run.question });
    run.asked.node = this.nodes.at(-1);
    run.asked = null;
    run.versions = [];
  }

  #versions(run, id) {
    return this.#host.temporary ? [id] : [...run.versions, id];
  }

  /** The server has not taken it. */
  refused(run, error) {
    if (run !== this.run) return;
    for (const companion of run.companions) companion.thread.#giveUp(companion);
    const { message, code } = error;
    if (run.kind === "ask" && !run.cut.length && code !== "conflict") return this.#refuse(run, error);
    if (run.asked && run.message) this.#stored(run, run.parent);
    this.#giveUp(run);
    if (run.kind === "ask" && !run.cut.length) this.#host.compose(run.question);
    if (this.nodes.at(-1)?.role === "user") this.#missing(message);
    else this.#host.notice(message);
    if (code === "conflict") this.#host.reload();
  }

  #refuse(run, { message, code }) {
    this.run = null;
    this.#refused = run;
    const { threads } = run;
    const again = () => {
      this.dropRefused();
      this.#host.ask(run.question, threads);
    };
    const edit = () => {
      this.dropRefused();
      this.#host.compose(run.question);
    };
    // What is wrong with the message itself stays wrong: then only editing helps.
    const wrong = code?.startsWith("prompt_") || code === "context_length_exceeded";
    run.view.fail(message, wrong ? [[t("Edit"), edit]] : [[t("Try again"), again], [t("Edit"), edit]]);
    this.#announcer.say(message);
    this.refreshViews();
  }

  /** A turn that was never stored goes away: with the next one, or to be edited. */
  dropRefused() {
    this.#refused?.asked?.element.remove();
    this.#refused?.view.element.remove();
    this.#refused = null;
  }

  /** Nothing has come of a run: what was there before is there again. */
  #giveUp(run) {
    run.asked?.element.remove();
    run.view.element.remove();
    this.run = null;
    this.#host.runs.delete(run.ref);
    this.nodes.push(...run.cut);
    this.#turns.append(...run.cut.map((node) => node.view.element));
    this.refreshViews();
  }

  /** End the answer under way; what was not sent yet goes back into the message box. */
  stop() {
    const { run } = this;
    if (!run || run.stopping) return;
    if (!run.request_id && (!run.sent || this.#host.connection.withdraw(run.ref))) {
      this.#giveUp(run);
      if (run.kind === "ask" && !run.cut.length) this.#host.compose(run.question);
    } else {
      run.stopping = true;
      if (run.answer) this.#host.connection.stop(run.answer);
      this.refreshViews();
    }
  }

  // ---- The answer under way ----

  #attach(run) {
    run.answer = this.#host.connection.follow(run.request_id);
    run.answer.onchange = () => this.#show(run);
    this.#show(run);
  }

  #show(run) {
    const { answer, view } = run;
    if (answer?.end) return this.#finished(run);
    const { text, reasoning, calls } = run.content;
    if (text || reasoning || calls.length) {
      view.grow(run.content);
      if (this.loud) this.#announcer.follow(text);
      if (answer && !answer.waiting) return;
    }
    this.#wait(run); // also when its worker died, and it waits for another one
  }

  #wait(run) {
    const { models, known } = this.#host;
    const model = models.find((candidate) => candidate.name === run.model);
    const sentence = waitSentence(run.model, model, known, run.answer?.waiting);
    run.view.wait(sentence);
    if (sentence && sentence !== this.#said) this.#announcer.say(sentence);
    this.#said = sentence;
  }

  #finished(run) {
    const { answer, view, content } = run;
    const { end } = answer;
    this.run = null;
    this.nodes.push({ id: run.request_id, role: "assistant", parent: run.message, versions: this.#versions(run, run.request_id), view, content, usage: end.usage, reason: end.reason, rating: "", note: "" });
    view.node = this.nodes.at(-1);
    view.finish(content, end);
    const outcomes = { cancelled: t("Stopped."), length: t("The answer ended at the token limit."), error: end.error?.message };
    this.#announcer.end(this.loud ? content.text : "", outcomes[end.reason] ?? t("The answer is complete."));
    this.refreshViews();
    this.#host.finished();
  }

  /** The server no longer has the answer that was under way. */
  lost() {
    const { run } = this;
    const sentence = t("This answer got lost: the server no longer has it. Try again to have it written anew.");
    if (!this.#host.temporary) return this.open({ leaf: run.message, lost: run.request_id }).catch((error) => this.#host.notice(error.message));
    this.#giveUp(run);
    this.#missing(sentence);
  }

  /** The models, or what is known of them, have changed. */
  modelsChanged() {
    if (this.run && !this.run.answer?.end && (!this.run.content.text || this.run.answer?.waiting)) this.#wait(this.run);
    this.#offer();
    this.#host.changed();
  }

  // ---- The path ----

  /** Show nothing. */
  clear() {
    this.#opening++;
    this.#detach();
    this.#cutLoose();
    this.dropRefused();
    this.nodes = [];
    this.#more = false;
    this.#turns.replaceChildren();
  }

  /** Show what the server has; gives its answer, or null if something else was opened meanwhile. */
  async open({ leaf = "", lost = "", count = FIRST, around = null } = {}) {
    const turn = ++this.#opening;
    const { conversation } = this.#host;
    const [page] = await Promise.all([call("GET", `/conversations/${conversation}?${new URLSearchParams({ leaf, count })}`), loadMarkdown()]);
    if (turn !== this.#opening || conversation !== this.#host.conversation) return null;
    const fill = () => this.#fill(page, leaf, lost);
    if (around) this.#follower.around(around, fill);
    else fill();
    return page;
  }

  /** Show the same as another column, which is stored nowhere. */
  copy(other) {
    this.nodes = other.nodes.map((node) => this.#node({ ...node, parts: null, message_id: node.id }, node.content));
    this.#lay();
    this.#follower.toEnd();
  }

  #fill({ messages, more, running, leaf: tip }, wanted, lost) {
    const following = this.empty || tip !== this.leaf;
    const known = new Map(this.nodes.map((node) => [node.id, node]));
    if (this.run?.request_id) known.set(this.run.request_id, { view: this.run.view });
    const above = this.nodes.slice(0, 1 + this.nodes.findIndex(({ id }) => id === messages[0]?.parent));
    this.#more = above.length ? this.#more : more;
    const kept = this.run && running.some(({ request_id, message }) => request_id === this.run.request_id && request_id !== lost && message === tip) ? this.run : null;
    if (!kept) this.#detach();
    this.#cutLoose();
    this.nodes = [...above, ...messages.map((message) => this.#node(message, null, known.get(message.message_id)))];
    this.run = kept;
    this.#lay();
    if (!kept && this.nodes.at(-1)?.role === "user") {
      const free = running.filter(({ request_id, message }) => message === tip && request_id !== lost && !this.#host.shows(request_id));
      const found = free.find(({ request_id }) => request_id === wanted) ?? free.at(-1);
      if (found) this.#takeUp(found);
      else this.#missing(lost ? t("This answer got lost: the server no longer has it. Try again to have it written anew.") : t("This message has no answer yet."));
    }
    if (following) this.#follower.toEnd();
    this.refreshViews();
    this.#readEarlier();
  }

  /** Put the nodes' elements into the page, leaving those alone that are where they belong. */
  #lay() {
    const elements = this.nodes.map((node) => node.view.element);
    if (this.run) elements.push(this.run.view.element);
    const wanted = new Set(elements);
    for (const element of [...this.#turns.children]) if (!wanted.has(element)) element.remove();
    elements.forEach((element, i) => {
      if (this.#turns.children[i] !== element) this.#turns.insertBefore(element, this.#turns.children[i] ?? null);
    });
  }

  #node(message, content, known) {
    const { message_id: id, role, parent, versions, parts, usage, reason, rating, note } = message;
    content ??= role === "user" ? questionOf(parts) : contentOf(parts);
    const node = { id, role, parent, versions, content, usage, reason, rating, note };
    node.view = known?.view ?? (role === "user" ? this.#questionView(content) : this.#answerView({ model: message.model ?? message.view?.model }));
    node.view.node = node;
    if (role === "assistant" && !known?.id) node.view.finish(content, message);
    return node;
  }

  #takeUp({ request_id, message, model, begun, versions }) {
    const others = versions.filter((id) => id !== request_id);
    const run = this.#newRun("resumed", { request_id, message, model, sent: true, versions: others, begun: begun.length ? { content: contentOf(begun) } : null });
    const at = this.nodes.at(-1);
    run.question = at.content;
    run.before = this.nodes.slice(0, -1);
    this.run = run;
    this.#turns.append(run.view.element);
    this.#announcer.begin();
    this.#attach(run);
  }

  #missing(sentence) {
    this.fail(sentence, () => this.again());
  }

  /** Say what is wrong, in the place of an answer; `again` tries it once more. */
  fail(sentence, again) {
    this.#cutLoose();
    this.#loose = this.#answerView({ model: "" });
    this.#loose.fail(sentence, [[t("Try again"), again]]);
    this.#turns.append(this.#loose.element);
    this.#host.changed();
  }

  #cutLoose() {
    this.#loose?.element.remove();
    this.#loose = null;
  }

  #detach() {
    if (this.run?.answer) this.run.answer.onchange = null;
    if (this.run && !this.run.sent) this.#host.runs.delete(this.run.ref);
    this.run = null;
  }

  async #readEarlier() {
    if (!this.#more || this.#reading || this.#scroller.scrollTop > NEAR_TOP) return;
    const [first] = this.nodes;
    const turn = this.#opening;
    this.#reading = true;
    try {
      const query = new URLSearchParams({ leaf: this.leaf, before: first.id, count: PAGE });
      const { messages, more } = await call("GET", `/conversations/${this.#host.conversation}?${query}`);
      if (turn !== this.#opening) return;
      this.#more = more;
      const nodes = messages.map((message) => this.#node(message));
      this.#follower.around(first.view.element, () => {
        this.nodes = [...nodes, ...this.nodes];
        this.#turns.prepend(...nodes.map((node) => node.view.element));
        this.refreshViews();
      });
    } catch {
      // The connection is away, and the page says so; scrolling asks again.
    } finally {
      this.#reading = false;
    }
  }

  // ---- One message ----

  /** What each message may do now. */
  refreshViews() {
    for (const node of this.nodes) {
      node.view.versions = { at: node.versions.indexOf(node.id), count: node.versions.length };
      if (node.role !== "assistant") continue;
      node.view.rating = node.rating;
      node.view.last = false;
    }
    this.#offer();
    this.#turns.classList.toggle("busy", Boolean(this.run));
    this.#host.changed();
  }

  /** What may be done with the last answer depends on the model, too. */
  #offer() {
    const last = this.nodes.at(-1);
    if (last?.role !== "assistant" || this.run) return;
    const model = this.#host.modelOf(this);
    const ended = ["length", "cancelled"].includes(last.reason) && last.content.text !== "";
    last.view.last = true;
    last.view.continuable = ended && usable(model) && Boolean(model.abilities?.includes("continue"));
  }

  /** Have the server show this path when the conversation is opened again. */
  remember() {
    if (this.#host.temporary || !this.leaf || this.run) return;
    call("PUT", `/conversations/${this.#host.conversation}/leaf`, { leaf: this.leaf }).catch(() => {}); // shown all the same
  }

  #questionView(question) {
    const view = new QuestionView(question, (what, detail) => this.#act(view, what, detail));
    return view;
  }

  #answerView({ model }) {
    const view = new AnswerView(model, (what, detail) => this.#act(view, what, detail));
    return view;
  }

  #act(view, what, detail) {
    const { node } = view;
    if (this.run) {
      this.#host.busy();
      return false;
    }
    const acts = {
      again: () => this.again(node),
      continue: () => this.#goOn(node),
      edit: () => this.#edit(node, detail),
      turn: () => this.#turn(node, detail),
      rate: () => this.#rate(node, detail),
      more: () => this.#menu(node, detail),
      remove: () => this.#remove(node),
    };
    return acts[what]();
  }

  #edit(node, text) {
    const model = this.#host.modelOf(this);
    if (!usable(model)) {
      this.#host.notice(this.#host.obstacle(model));
      return false;
    }
    this.ask({ text, files: node.content.files }, { at: this.nodes.indexOf(node) });
  }

  /** Show the version before or after, with what is below it. */
  async #turn(node, step) {
    const at = node.versions.indexOf(node.id) + step;
    const id = node.versions[at];
    const above = this.nodes[this.nodes.indexOf(node) - 1];
    try {
      if (!(await this.open({ leaf: id, count: MOST, around: above?.view.element ?? this.#scroller }))) return;
    } catch (error) {
      return this.#host.notice(error.message);
    }
    const shown = this.nodes.find((candidate) => candidate.id === id)?.view ?? this.run?.view;
    shown?.focusVersions(step);
    this.#announcer.say(t("Version {at} of {count}", { at: at + 1, count: node.versions.length }));
    this.#host.moved();
    this.remember();
  }

  async #rate(node, { rating, button }) {
    const before = node.rating;
    const save = async (value, note) => {
      node.rating = value;
      node.note = note;
      node.view.rating = value;
      try {
        await call("PUT", `${this.#address(node)}/rating`, { rating: value || null, note });
      } catch (error) {
        node.rating = node.view.rating = before;
        this.#host.notice(error.message);
      }
    };
    save(before === rating ? "" : rating, "");
    if (!node.rating) return;
    const { askNote } = await import("./rating.js");
    askNote(button, node.note, (note) => save(node.rating, note));
  }

  async #menu(node, button) {
    const { openMenu } = await import("./menu.js");
    const others = this.#host.models.filter((model) => usable(model) && model.name !== node.view.model).slice(0, MENU_MODELS);
    openMenu(button, t("More about this answer"), [
      ...others.map((model) => ({ label: t("Write again with {model}", { model: model.name }), icon: "again", act: () => this.again(node, model) })),
      { label: t("Delete this answer"), icon: "trash", danger: true, act: () => this.#remove(node) },
    ]);
  }

  async #remove(node) {
    const { confirm } = await import("./confirm.js");
    const title = node.role === "user" ? t("Delete this message?") : t("Delete this answer?");
    if (!(await confirm(title, t("It is removed for good, with everything that was said below it."), t("Delete")))) return;
    if (this.#host.temporary) {
      this.nodes.splice(this.nodes.indexOf(node));
      this.#lay();
      if (this.nodes.length) this.#missing(t("This message has no answer yet."));
      return this.refreshViews();
    }
    try {
      const { leaf } = await call("DELETE", this.#address(node));
      await this.open({ leaf, count: MOST });
      this.#host.moved();
    } catch (error) {
      this.#host.notice(error.message);
    }
  }

  #address({ id }) {
    return `/conversations/${this.#host.conversation}/messages/${id}`;
  }
}

function questionOf(parts) {
  const text = parts.filter((part) => part.kind === "text").map((part) => part.text).join("");
  return { text, files: parts.filter((part) => part.kind === "file").map(({ name, text: content }) => ({ name, text: content })) };
}
