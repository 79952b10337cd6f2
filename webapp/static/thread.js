/**
 * One column: its path of messages, and at most one answer under way at its end.
 *
 * What a column cannot know by itself (the model, the settings, the conversation) it asks its `host`, the page.
 */

import { Announcer } from "./announce.js";
import { contentOf, loadMarkdown } from "./answer.js";
import { call } from "./api.js";
import { deeds } from "./deeds.js";
import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { Path } from "./path.js";
import { usable } from "./picker.js";
import { newRef, Run } from "./run.js";
import { waitSentence } from "./sayings.js";

export class Thread extends Path {
  run = null;
  loud = true; // whether its answers are read out while they are written
  #announcer = new Announcer($("live"));
  #refused = null; // a turn that the server did not take; it goes with the next one
  #said = "";

  /** `parts`: the elements scroller, turns and latest. */
  constructor(host, parts) {
    super(host, parts, (view, what, detail) => this.#act(view, what, detail));
  }

  // ---- Asking ----

  /** A new question and its answer; `at` is the place of the question whose newer version it is. */
  ask(question, { at = this.nodes.length, companions = [] } = {}) {
    const before = this.nodes.slice(0, at);
    const run = this.#newRun("ask", { question, before, parent: before.at(-1)?.id ?? "", companions, versions: this.nodes[at]?.versions ?? [] });
    run.asked = this.questionView(question);
    this.#start(run, at);
    this.#send(run);
    return run;
  }

  /** The answer to a question that another column asks: it begins when that one is accepted. */
  accompany(question) {
    const run = this.#newRun("regenerate", { question, before: [...this.nodes] });
    run.asked = this.questionView(question);
    this.#start(run, this.nodes.length);
    return run;
  }

  /** Another answer, in the place of one or below the last question. */
  again(node = null, model = this.host.modelOf(this)) {
    if (this.run) return this.host.busy();
    if (!usable(model)) return this.host.notice(this.host.obstacle(model));
    const at = node ? this.nodes.indexOf(node) : this.nodes.length;
    const asked = this.nodes[at - 1];
    if (asked?.role !== "user") return;
    const { text, files } = asked.content;
    this.#send(this.#start(this.#newRun("regenerate", { model: model.name, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node?.versions ?? [] }), at));
  }

  goOn(node) {
    if (this.run) return this.host.busy();
    const at = this.nodes.indexOf(node);
    const asked = this.nodes[at - 1];
    const { text, files } = asked.content;
    const begun = { id: node.id, content: node.content };
    this.#send(this.#start(this.#newRun("continue", { begun, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node.versions }), at));
  }

  #newRun(kind, what) {
    const run = new Run({ kind, model: this.host.modelOf(this)?.name ?? "", ...what, thread: this });
    run.view = this.answerView(run.model);
    return run;
  }

  #start(run, at) {
    loadMarkdown().catch(() => {}); // the view shows plain text then
    this.dropRefused();
    this.cutLoose();
    run.cut = this.nodes.splice(at);
    for (const node of run.cut) node.view.element.remove();
    if (run.asked) this.turns.append(run.asked.element);
    this.turns.append(run.view.element);
    this.run = run;
    this.host.runs.set(run.ref, run);
    this.#announcer.begin();
    this.#said = "";
    this.#show(run);
    this.refresh();
    this.follower.toEnd();
    this.host.started();
    return run;
  }

  #send(run) {
    run.sent = true;
    this.host.send(run);
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
    if (run.stopping) this.host.connection.stop(run.answer);
  }

  /** The question of a run is stored: it is a node like all others. */
  #stored(run, parent) {
    this.nodes.push({ id: run.message, role: "user", parent, versions: this.#versions(run, run.message), view: run.asked, content: run.question });
    run.asked.node = this.nodes.at(-1);
    run.asked = null;
    run.versions = [];
  }

  #versions(run, id) {
    return this.host.temporary ? [id] : [...run.versions, id];
  }

  /** The server has not taken it. */
  refused(run, error) {
    if (run !== this.run) return;
    for (const companion of run.companions) companion.thread.#giveUp(companion);
    const { message, code } = error;
    if (run.kind === "ask" && !run.cut.length && code !== "conflict") return this.#refuse(run, error);
    if (run.asked && run.message) this.#stored(run, run.parent);
    this.#giveUp(run);
    if (run.kind === "ask" && !run.cut.length) this.host.compose(run.question);
    if (this.nodes.at(-1)?.role === "user") this.missing(message);
    else this.host.notice(message);
    if (code === "conflict") this.host.reload();
  }

  #refuse(run, { message, code }) {
    this.run = null;
    this.#refused = run;
    const { threads } = run;
    const again = () => {
      this.dropRefused();
      this.host.ask(run.question, threads);
    };
    const edit = () => {
      this.dropRefused();
      this.host.compose(run.question);
    };
    // What is wrong with the message itself stays wrong: then only editing helps.
    const wrong = code?.startsWith("prompt_") || code === "context_length_exceeded";
    run.view.fail(message, wrong ? [[t("Edit"), edit]] : [[t("Try again"), again], [t("Edit"), edit]]);
    this.#announcer.say(message);
    this.refresh();
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
    this.host.runs.delete(run.ref);
    this.nodes.push(...run.cut);
    this.turns.append(...run.cut.map((node) => node.view.element));
    this.refresh();
  }

  /** End the answer under way; what was not sent yet goes back into the message box. */
  stop() {
    const { run } = this;
    if (!run || run.stopping) return;
    if (!run.request_id && (!run.sent || this.host.connection.withdraw(run.ref))) {
      this.#giveUp(run);
      if (run.kind === "ask" && !run.cut.length) this.host.compose(run.question);
    } else {
      run.stopping = true;
      if (run.answer) this.host.connection.stop(run.answer);
      this.refresh();
    }
  }

  // ---- The answer under way ----

  #attach(run) {
    run.answer = this.host.connection.follow(run.request_id);
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
    const { models, known } = this.host;
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
    this.refresh();
    this.host.finished();
  }

  /** The server no longer has the answer that was under way. */
  lost() {
    const { run } = this;
    const sentence = t("This answer got lost: the server no longer has it. Try again to have it written anew.");
    if (!this.host.temporary) return this.open({ leaf: run.message, lost: run.request_id }).catch((error) => this.host.notice(error.message));
    this.#giveUp(run);
    this.missing(sentence);
  }

  /** The models, or what is known of them, have changed. */
  modelsChanged() {
    if (this.run && !this.run.answer?.end && (!this.run.content.text || this.run.answer?.waiting)) this.#wait(this.run);
    this.#offer();
    this.host.changed();
  }

  // ---- The path ----

  clear() {
    this.detach();
    this.dropRefused();
    super.clear();
  }

  /** An answer that the server says is under way. */
  takeUp({ request_id, message, model, begun, versions }) {
    const others = versions.filter((id) => id !== request_id);
    const run = this.#newRun("resumed", { request_id, message, model, sent: true, versions: others, begun: begun.length ? { content: contentOf(begun) } : null });
    const at = this.nodes.at(-1);
    run.question = at.content;
    run.before = this.nodes.slice(0, -1);
    this.run = run;
    this.turns.append(run.view.element);
    this.#announcer.begin();
    this.#attach(run);
  }

  /** Look away from the answer under way; it goes on. */
  detach() {
    if (this.run?.answer) this.run.answer.onchange = null;
    if (this.run && !this.run.sent) this.host.runs.delete(this.run.ref);
    this.run = null;
  }

  /** Take a message and what is below it away, in a chat that is stored nowhere. */
  drop(node) {
    this.nodes.splice(this.nodes.indexOf(node));
    this.lay();
    if (this.nodes.length) this.missing(t("This message has no answer yet."));
    this.refresh();
  }

  say(text) {
    this.#announcer.say(text);
  }

  /** What each message may do now. */
  refresh() {
    for (const node of this.nodes) {
      node.view.versions = { at: node.versions.indexOf(node.id), count: node.versions.length };
      if (node.role !== "assistant") continue;
      node.view.rating = node.rating;
      node.view.last = node.view.continuable = false;
    }
    this.#offer();
    this.turns.classList.toggle("busy", Boolean(this.run));
    this.host.changed();
  }

  /** What may be done with the last answer depends on the model, too. */
  #offer() {
    const last = this.nodes.at(-1);
    if (last?.role !== "assistant" || this.run) return;
    const model = this.host.modelOf(this);
    const ended = ["length", "cancelled"].includes(last.reason) && last.content.text !== "";
    last.view.last = true;
    last.view.continuable = ended && usable(model) && Boolean(model.abilities?.includes("continue"));
  }

  /** Have the server show this path when the conversation is opened again. */
  remember() {
    if (this.host.temporary || !this.leaf || this.run) return;
    call("PUT", `/conversations/${this.host.conversation}/leaf`, { leaf: this.leaf }).catch(() => {}); // shown all the same
  }

  #act(view, what, detail) {
    if (!this.run) return deeds[what](this, view.node, detail);
    this.host.busy();
    return false;
  }
}
