/**
 * The answer under way at the end of a column's path: shown as its frames come, and a message like all others at its end.
 */

import { Announcer } from "./announce.js";
import { contentOf } from "./answer.js";
import { call } from "./api.js";
import { $ } from "./dom.js";
import { t, told } from "./i18n.js";
import { Path } from "./path.js";
import { usable } from "./picker.js";
import { Run } from "./run.js";
import { waitSentence } from "./sayings.js";

export class Writing extends Path {
  run = null;
  loud = true; // whether its answers are read out while they are written
  #announcer = new Announcer($("live"));
  #said = "";

  /** A run of this column, with its view. */
  newRun(kind, what) {
    const run = new Run({ kind, model: this.host.modelOf(this)?.name ?? "", ...what, thread: this });
    run.view = this.answerView(run.model);
    return run;
  }

  /** It is the answer under way from now on. */
  begin(run) {
    this.overtake();
    this.run = run;
    this.turns.append(run.view.element);
    this.#said = "";
    this.#announcer.begin();
  }

  /** An answer that the server says is under way. */
  takeUp({ request_id, message, model, begun, versions }) {
    const others = versions.filter((id) => id !== request_id);
    const run = this.newRun("resumed", { request_id, message, model, sent: true, versions: others, begun: begun.length ? { content: contentOf(begun) } : null });
    const at = this.nodes.at(-1);
    run.question = at.content;
    run.before = this.nodes.slice(0, -1);
    this.begin(run);
    this.attach(run);
  }

  /** Look away from the answer under way; it goes on. */
  detach() {
    if (this.run?.answer) this.run.answer.onchange = null;
    if (this.run && !this.run.sent) this.host.runs.delete(this.run.ref);
    this.run = null;
  }

  /** The server has it: its frames come. */
  attach(run) {
    run.answer = this.host.connection.follow(run.request_id);
    run.answer.onchange = () => this.show(run);
    this.show(run);
  }

  /** Show what there is of it. */
  show(run) {
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
    this.overtake();
    this.run = null;
    this.nodes.push({ id: run.request_id, role: "assistant", parent: run.message, versions: this.versionsWith(run, run.request_id), view, content, model: run.model, usage: end.usage, reason: end.reason, rating: "", note: "", end });
    view.node = this.nodes.at(-1);
    view.finish(content, end);
    const outcomes = { cancelled: t("Stopped."), length: t("The answer ended at the token limit."), error: end.error && told(end.error) };
    this.#announcer.end(this.loud ? content.text : "", outcomes[end.reason] ?? t("The answer is complete."));
    this.refresh();
    this.host.finished();
  }

  /** The server no longer has the answer that was under way. */
  lost() {
    const { run } = this;
    const sentence = t("This answer got lost: the server no longer has it. Try again to have it written anew.");
    if (!this.host.temporary) return this.open({ leaf: run.message, lost: run.request_id }).catch((error) => this.host.notice(error.message));
    this.giveUp(run);
    this.missing(sentence);
  }

  /** The models, or what is known of them, have changed. */
  modelsChanged() {
    if (this.run && !this.run.answer?.end && (!this.run.content.text || this.run.answer?.waiting)) this.#wait(this.run);
    this.#offer();
    this.host.changed();
  }

  /** The versions of a message that has come with a run. */
  versionsWith(run, id) {
    return this.host.temporary ? [id] : [...run.versions, id];
  }

  /** For screen readers. */
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
  async remember(leaf = this.leaf) {
    if (this.host.temporary || !leaf) return;
    await call("PUT", `/conversations/${this.host.conversation}/leaf`, { leaf }).catch(() => {}); // shown all the same
  }
}
