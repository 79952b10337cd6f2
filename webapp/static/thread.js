/**
 * One column: what is asked in it, and what becomes of that.
 *
 * What a column cannot know by itself (the model, the settings, the conversation) it asks its `host`, the page.
 */

import { loadMarkdown } from "./answer.js";
import { deeds } from "./deeds.js";
import { t } from "./i18n.js";
import { usable } from "./picker.js";
import { newRef } from "./run.js";
import { Writing } from "./writing.js";

export class Thread extends Writing {
  #refused = null; // a turn that the server did not take; it goes with the next one

  /** `parts`: the elements scroller, turns and latest. */
  constructor(host, parts) {
    super(host, parts, (view, what, detail) => this.#act(view, what, detail));
  }

  /** A new question and its answer; `at` is the place of the question whose newer version it is. */
  ask(question, { at = this.nodes.length, companions = [] } = {}) {
    const before = this.nodes.slice(0, at);
    const run = this.newRun("ask", { question, before, parent: before.at(-1)?.id ?? "", companions, versions: this.nodes[at]?.versions ?? [] });
    run.asked = this.questionView(question);
    this.#start(run, at);
    this.#send(run);
    return run;
  }

  /** The answer to a question that another column asks: it begins when that one is accepted. */
  accompany(question) {
    const run = this.newRun("regenerate", { question, before: [...this.nodes] });
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
    this.#send(this.#start(this.newRun("regenerate", { model: model.name, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node?.versions ?? [] }), at));
  }

  goOn(node) {
    if (this.run) return this.host.busy();
    const at = this.nodes.indexOf(node);
    const asked = this.nodes[at - 1];
    const { text, files } = asked.content;
    const begun = { id: node.id, content: node.content };
    this.#send(this.#start(this.newRun("continue", { begun, question: { text, files }, before: this.nodes.slice(0, at - 1), message: asked.id, versions: node.versions }), at));
  }

  #start(run, at) {
    loadMarkdown().catch(() => {}); // the view shows plain text then
    this.dropRefused();
    this.cutLoose();
    run.cut = this.nodes.splice(at);
    for (const node of run.cut) node.view.element.remove();
    if (run.asked) this.turns.append(run.asked.element);
    this.begin(run);
    this.host.runs.set(run.ref, run);
    this.show(run);
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
    this.attach(run);
    if (run.stopping) this.host.connection.stop(run.answer);
  }

  /** The question of a run is stored: it is a node like all others. */
  #stored(run, parent) {
    this.nodes.push({ id: run.message, role: "user", parent, versions: this.versionsWith(run, run.message), view: run.asked, content: run.question });
    run.asked.node = this.nodes.at(-1);
    run.asked = null;
    run.versions = [];
  }

  /** The server has not taken it. */
  refused(run, error) {
    if (run !== this.run) return;
    for (const companion of run.companions) companion.thread.giveUp(companion);
    const { message, code } = error;
    if (run.kind === "ask" && !run.cut.length && code !== "conflict") return this.#refuse(run, error);
    if (run.asked && run.message) this.#stored(run, run.parent);
    this.#handBack(run);
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
    this.say(message);
    this.refresh();
  }

  /** A turn that was never stored goes away: with the next one, or to be edited. */
  dropRefused() {
    this.#refused?.asked?.element.remove();
    this.#refused?.view.element.remove();
    this.#refused = null;
  }

  /** Nothing has come of a run: what was there before is there again. */
  giveUp(run) {
    run.asked?.element.remove();
    run.view.element.remove();
    this.run = null;
    this.host.runs.delete(run.ref);
    this.nodes.push(...run.cut);
    this.turns.append(...run.cut.map((node) => node.view.element));
    this.refresh();
  }

  /** Nothing has come of a run, and what was written for it goes back to where it was written. */
  #handBack(run) {
    this.giveUp(run);
    if (run.kind !== "ask") return;
    if (run.cut.length) run.cut[0].view.edit(run.question.text);
    else this.host.compose(run.question);
  }

  /** End the answer under way; what was not sent yet goes back into the message box. */
  stop() {
    const { run } = this;
    if (!run || run.stopping) return;
    if (!run.request_id && (!run.sent || this.host.connection.withdraw(run.ref))) {
      this.#handBack(run);
    } else {
      run.stopping = true;
      if (run.answer) this.host.connection.stop(run.answer);
      this.refresh();
    }
  }

  clear() {
    this.detach();
    this.dropRefused();
    super.clear();
  }

  /** Take a message and what is below it away, in a chat that is stored nowhere. */
  drop(node) {
    this.nodes.splice(this.nodes.indexOf(node));
    this.lay();
    if (this.nodes.length) this.missing(t("This message has no answer yet."));
    this.refresh();
  }

  #act(view, what, detail) {
    if (!this.run) return deeds[what](this, view.node, detail);
    this.host.busy();
    return false;
  }
}
