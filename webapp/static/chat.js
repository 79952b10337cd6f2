/**
 * The chat page: what is open, what is being written, and who does what about it.
 *
 * The parts know nothing of each other: the connection brings frames and news, the views show turns, the sidebar lists,
 * the picker picks. This module holds the one conversation that is open and at most one answer under way in it.
 */

import { Announcer } from "./announce.js";
import { AnswerView, loadMarkdown, questionView } from "./answer.js";
import { call } from "./api.js";
import { $, copy, h, setText } from "./dom.js";
import { Picker, usable } from "./picker.js";
import { Follower } from "./scroll.js";
import { SettingsPanel } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { recall, remember } from "./store.js";
import { Connection } from "./stream.js";

const RESUME_AGAIN_SECONDS = 2;
const NOTICE_MS = 9000;
const HINT = "Enter sends, Shift + Enter makes a new line. Answers can be wrong.";
const LONG_TITLE = 28; // characters; longer ones are set smaller
const AWAY = "The connection is away. The answer goes on when it is back, and then you can write again.";
const BUSY = "Wait for the answer to end, or stop it with Esc.";
const LOST = "This answer got lost: the server no longer has it. Try again to have it written anew.";

class ChatPage {
  #conversation = ""; // id of the open one; "" for a new chat
  #leaf = ""; // the message that the next one follows
  #question = ""; // id of the last question
  #view = null; // of the last answer
  #run = null; // the answer under way: {ref, request_id, answer, view, …}
  #runs = new Map(); // ref -> run that the server has not answered yet, also of conversations that were left
  #refused = null; // a turn that the server did not take; it goes with the next one
  #opening = 0; // counts what was opened, so that a late answer of the server is recognised
  #connectedBefore = false;
  #noticeTimer = 0;
  #said = "";
  #turns = $("turns");
  #prompt = $("prompt");
  #announcer = new Announcer($("live"));
  #follower = new Follower($("scroller"), $("turns"), $("latest"));
  #settings = new SettingsPanel();
  #picker = new Picker(() => this.#modelsChanged());
  #sidebar = new Sidebar({
    open: (id) => this.#open(id),
    deleted: (id) => id === this.#conversation && this.#begin(),
    problem: (message) => this.#notice(message),
    listed: () => this.#retitle(this.#sidebar.find(this.#conversation)?.title),
  });
  #connection;

  constructor() {
    this.#listen();
    const address = new URL("/ws", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.#connection = new Connection(address, {
      models: (models) => this.#picker.update(models),
      event: (event) => this.#happened(event),
      accepted: (message) => this.#accepted(message),
      refused: (error) => this.#refuse(error),
      failed: (error) => this.#failed(error),
      connected: () => this.#connected(),
      away: () => this.#away(),
      unsure: (ref) => this.#settle(this.#runs.get(ref)),
    });
    this.#sidebar.refresh();
    this.#visit();
    // An empty page loads no Markdown; the first sign of a person fetches it, long before the first answer.
    for (const sign of ["pointerdown", "keydown"]) addEventListener(sign, () => loadMarkdown().catch(() => {}), { once: true });
  }

  // ---- Input ----

  #listen() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // While a Chinese or Japanese word is being composed, Enter belongs to the input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener("input", () => this.#typed());
    $("stop").addEventListener("click", () => this.#stop());
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
    $("starters").addEventListener("click", (event) => {
      const starter = event.target.closest("button");
      if (starter) this.#send(starter.textContent);
    });
    this.#turns.addEventListener("click", (event) => {
      const button = event.target.closest(".code-copy");
      if (button) this.#copyCode(button);
    });
    $("theme").addEventListener("click", () => this.#nextTheme());
    this.#labelTheme(document.documentElement.dataset.theme ?? "auto");
    addEventListener("popstate", () => this.#visit());
  }

  #key(event) {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      // What lies on top closes first; then Escape stops the answer.
      const covered = document.querySelector(":popover-open, dialog[open]") || document.body.classList.contains("drawn");
      if (covered || event.target.closest?.(".side-input")) return;
      this.#stop();
    } else if (event.key === "/" && !event.target.closest?.("input, textarea, [role=listbox], [role=menu], dialog")) {
      event.preventDefault();
      this.#prompt.focus();
    }
  }

  #submit() {
    const text = this.#prompt.value;
    if (!text.trim()) return this.#prompt.focus();
    if (this.#run) return this.#hint($("connection").hidden ? BUSY : AWAY, true);
    if (!usable(this.#picker.model)) return this.#hint(this.#obstacle(), true);
    this.#send(text);
  }

  #typed() {
    if (!CSS.supports("field-sizing", "content")) {
      this.#prompt.style.height = "auto";
      this.#prompt.style.height = `${this.#prompt.scrollHeight}px`;
    }
    this.#buttons();
  }

  #write(text) {
    this.#prompt.value = text;
    this.#typed();
  }

  #focus() {
    // On a phone the keyboard comes up only when it is asked for.
    if (matchMedia("(pointer: fine)").matches) this.#prompt.focus();
  }

  async #copyCode(button) {
    await copy(button.closest(".code").querySelector("code").textContent, button);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  }

  // ---- Asking ----

  #send(text) {
    const model = this.#picker.model;
    if (this.#run || !usable(model)) return this.#hint(this.#run ? BUSY : this.#obstacle(), true);
    this.#dropRefused();
    $("notice").hidden = true; // it was about what went before
    const question = questionView(text);
    const view = this.#newView(model.name);
    this.#turns.append(question, view.element);
    const run = { ref: newRef(), kind: "ask", text, question, view, model: model.name, conversation: this.#conversation, parent: this.#leaf };
    this.#write("");
    this.#ask(run);
    this.#follower.toEnd();
    this.#prompt.focus({ preventScroll: true });
  }

  #regenerate() {
    const model = usable(this.#picker.model) ? this.#picker.model : null;
    if (this.#run || !this.#question) return;
    if (!model) return this.#notice(this.#obstacle());
    const view = this.#newView(model.name);
    const old = this.#view;
    if (old) old.element.replaceWith(view.element);
    else this.#turns.append(view.element);
    this.#ask({ ref: newRef(), kind: "regenerate", view, old, model: model.name, conversation: this.#conversation, message: this.#question });
    this.#follower.toEnd();
    this.#prompt.focus({ preventScroll: true }); // the button that was pressed is gone
  }

  #ask(run) {
    loadMarkdown().catch(() => {}); // the view shows plain text then
    this.#run = run;
    this.#view = run.view;
    run.known = new Set(this.#sidebar.conversations.map((conversation) => conversation.conversation_id));
    this.#runs.set(run.ref, run);
    this.#announcer.begin();
    this.#said = "";
    this.#show(run);
    this.#buttons();
    this.#transmit(run);
  }

  #transmit(run) {
    const { temperature, top_p, max_tokens } = this.#settings.values;
    const message = { type: run.kind, ref: run.ref, model: run.model, settings: { temperature, top_p, max_tokens } };
    if (run.conversation) message.conversation = run.conversation;
    if (run.kind === "ask") Object.assign(message, { text: run.text }, run.parent && run.conversation ? { parent: run.parent } : {});
    else message.message = run.message;
    this.#connection.ask(message);
  }

  #accepted({ ref, request_id, conversation, message, title }) {
    const run = this.#runs.get(ref);
    this.#runs.delete(ref);
    this.#sidebar.refresh();
    if (!run || run !== this.#run) return;
    run.request_id = request_id;
    this.#question = message;
    if (!this.#conversation) {
      this.#conversation = conversation;
      history.pushState(null, "", `/c/${conversation}`);
      this.#sidebar.active = conversation;
      this.#retitle(title);
    }
    this.#attach(run);
    if (run.stopping) this.#connection.stop(run.answer);
  }

  #refuse(error) {
    const run = this.#runs.get(error.ref);
    this.#runs.delete(error.ref);
    if (!run || run !== this.#run) return;
    this.#run = null;
    if (error.code === "conflict") {
      if (run.text && !this.#prompt.value) this.#write(run.text);
      this.#notice(error.message);
      this.#open(this.#conversation, { push: false });
    } else if (run.kind === "ask") {
      this.#refused = run;
      this.#view = null;
      const again = () => {
        this.#dropRefused();
        this.#send(run.text);
      };
      const edit = () => {
        this.#dropRefused();
        this.#write(run.text);
        this.#prompt.focus();
      };
      // What is wrong with the message itself stays wrong: then only editing helps.
      const wrong = error.code?.startsWith("prompt_") || error.code === "context_length_exceeded";
      run.view.fail(error.message, wrong ? [["Edit", edit]] : [["Try again", again], ["Edit", edit]]);
      this.#announcer.say(error.message);
    } else {
      this.#putBack(run);
      this.#notice(error.message);
    }
    this.#buttons();
  }

  /** A turn that was never stored goes away: with the next one, or to be edited. */
  #dropRefused() {
    this.#refused?.question.remove();
    this.#refused?.view.element.remove();
    this.#refused = null;
    this.#buttons();
  }

  #putBack(run) {
    if (run.old) run.view.element.replaceWith(run.old.element);
    else run.view.element.remove();
    this.#view = run.old;
  }

  #stop() {
    const run = this.#run;
    if (!run || run.stopping) return;
    if (!run.request_id && this.#connection.withdraw(run.ref)) {
      this.#runs.delete(run.ref);
      this.#run = null;
      if (run.kind === "ask") {
        this.#refused = run;
        this.#dropRefused();
        this.#view = null;
        if (!this.#prompt.value) this.#write(run.text);
      } else this.#putBack(run);
    } else {
      run.stopping = true;
      if (run.answer) this.#connection.stop(run.answer);
    }
    this.#buttons();
  }

  /** The connection broke before the server said whether it took a message: look, and send it again only if it did not. */
  async #settle(run) {
    if (!run) return;
    try {
      if (run.conversation) {
        const { conversation, messages } = await call("GET", `/conversations/${run.conversation}`);
        const taken =
          run.kind === "ask"
            ? messages.some((message) => message.role === "user" && message.parent === run.parent && textOf(message) === run.text)
            : conversation.requests.length > 0;
        if (taken) return this.#adopt(run, run.conversation);
      } else {
        const { conversations } = await call("GET", "/conversations");
        const line = run.text.split(/\s+/).join(" ").trim();
        const taken = conversations.find(({ conversation_id, title }) => !run.known.has(conversation_id) && line.startsWith(title.replace(/…$/, "")));
        if (taken) return this.#adopt(run, taken.conversation_id);
      }
      this.#transmit(run);
    } catch (error) {
      this.#refuse({ ref: run.ref, code: error.code, message: error.message });
    }
  }

  #adopt(run, conversation) {
    this.#runs.delete(run.ref);
    this.#sidebar.refresh();
    if (run !== this.#run) return;
    this.#run = null;
    this.#open(conversation, { push: !this.#conversation });
  }

  // ---- The answer under way ----

  #attach(run) {
    run.answer = this.#connection.follow(run.request_id);
    run.answer.onchange = () => this.#show(run);
    this.#show(run);
  }

  #detach() {
    if (this.#run?.answer) this.#run.answer.onchange = null;
    this.#run = null;
    this.#view = null;
    this.#refused = null;
  }

  #show(run) {
    const { answer, view } = run;
    if (answer?.end) {
      this.#finished(run);
    } else if (answer?.text || answer?.reasoning) {
      view.grow(answer.text, answer.reasoning);
      this.#announcer.follow(answer.text);
      if (answer.waiting) this.#wait(run); // its worker died, and it waits for another one
    } else {
      this.#wait(run);
    }
  }

  #wait(run) {
    const sentence = this.#waitSentence(run);
    run.view.wait(sentence);
    if (sentence && sentence !== this.#said) this.#announcer.say(sentence);
    this.#said = sentence;
  }

  #waitSentence({ model: name, answer }) {
    const model = this.#picker.models.find((candidate) => candidate.name === name);
    if (model?.state === "loading") return `${name} is loading (${model.progress || 0} %). Your message waits for it.`;
    if (this.#picker.known && name && !usable(model)) return `No worker serves ${name} right now. It goes on when one starts.`;
    const place = answer?.waiting?.place;
    if (place == null) return "";
    if (place === 0) return "You are next in line";
    return place === 1 ? "1 request before yours" : `${place.toLocaleString("en")} requests before yours`;
  }

  #finished(run) {
    const { answer, view } = run;
    this.#run = null;
    this.#leaf = run.request_id;
    view.finish(answer.text, answer.reasoning, answer.end);
    const outcome = { cancelled: "Stopped.", length: "The answer ended at the token limit.", error: answer.end.error?.message };
    this.#announcer.end(answer.text, outcome[answer.end.reason] ?? "The answer is complete.");
    if (!view.model) this.#nameModel(run);
    this.#buttons();
  }

  // An answer that was taken up in the middle: which model wrote it stands in the stored message.
  async #nameModel({ request_id, view, answer }) {
    try {
      const { messages } = await call("GET", `/conversations/${this.#conversation}`);
      view.model = messages.find((message) => message.message_id === request_id)?.model ?? "";
      view.finish(answer.text, answer.reasoning, answer.end);
    } catch {
      // It stays without a name.
    }
  }

  #failed(error) {
    const answer = this.#connection.answers.get(error.request_id);
    if (!error.request_id) return this.#notice(error.message);
    if (!answer) return;
    if (error.code === "worker_lost" || error.status === 404) {
      this.#connection.answers.delete(error.request_id);
      if (this.#run?.request_id === error.request_id) this.#open(this.#conversation, { push: false, lost: error.request_id });
    } else {
      setTimeout(() => {
        if (this.#connection.answers.has(error.request_id)) this.#connection.resume(answer);
      }, 1000 * (error.retry_after ?? RESUME_AGAIN_SECONDS));
    }
  }

  #newView(model) {
    return new AnswerView(model, () => this.#regenerate());
  }

  // ---- Conversations ----

  /** Show what the address says. */
  #visit() {
    const id = /^\/c\/([\w-]+)$/.exec(location.pathname)?.[1];
    if (id) this.#open(id, { push: false });
    else this.#begin({ push: false });
  }

  /** A new, empty chat. */
  #begin({ push = true } = {}) {
    this.#opening++;
    this.#detach();
    this.#turns.replaceChildren();
    this.#conversation = this.#leaf = this.#question = "";
    this.#sidebar.active = "";
    if (push && location.pathname !== "/") history.pushState(null, "", "/");
    this.#retitle("");
    this.#modelsChanged();
    this.#buttons();
    this.#focus();
  }

  /** Show a stored conversation; `lost` is an answer under way that the server no longer has. */
  async #open(id, { push = true, lost = "" } = {}) {
    const turn = ++this.#opening;
    if (push && location.pathname !== `/c/${id}`) history.pushState(null, "", `/c/${id}`);
    this.#sidebar.active = id;
    this.#sidebar.leave();
    const same = id === this.#conversation;
    if (!same) {
      this.#detach();
      this.#conversation = id;
      this.#leaf = this.#question = "";
      this.#turns.replaceChildren();
      this.#buttons();
    }
    try {
      const [{ conversation, messages }] = await Promise.all([call("GET", `/conversations/${id}`), loadMarkdown()]);
      if (turn !== this.#opening) return;
      this.#fill(conversation, messages, lost);
    } catch (error) {
      if (turn === this.#opening) this.#openFailed(id, error);
    }
  }

  #fill(conversation, messages, lost) {
    this.#detach();
    const views = [];
    let view = null;
    for (const message of messages) {
      if (message.role === "user") {
        this.#question = message.message_id;
        view = null;
        views.push(questionView(textOf(message)));
      } else {
        view = this.#newView(message.model);
        view.finish(textOf(message), textOf(message, "reasoning"), message);
        views.push(view.element);
      }
    }
    this.#turns.replaceChildren(...views);
    this.#view = view;
    this.#leaf = conversation.leaf;
    this.#retitle(conversation.title);
    const last = messages.findLast((message) => message.role === "assistant")?.model;
    if (last) this.#picker.prefer(last);
    const [request] = conversation.requests;
    if (request && request !== lost) this.#takeUp(request);
    else if (this.#question && !view) this.#unanswered(lost);
    this.#follower.toEnd();
    this.#modelsChanged();
    this.#buttons();
    this.#focus();
  }

  #takeUp(request_id) {
    const view = this.#newView("");
    this.#turns.append(view.element);
    this.#run = { ref: "", request_id, kind: "resumed", view, model: "", conversation: this.#conversation };
    this.#view = view;
    this.#announcer.begin();
    this.#attach(this.#run);
  }

  #unanswered(lost) {
    const view = this.#newView("");
    this.#turns.append(view.element);
    this.#view = view;
    view.fail(lost ? LOST : "This message has no answer yet.", [["Try again", () => this.#regenerate()]]);
  }

  #openFailed(id, error) {
    if (error.status === 404) {
      history.replaceState(null, "", "/");
      this.#begin({ push: false });
      this.#sidebar.refresh();
      return this.#notice("This conversation does not exist any more, or it is not yours. Here is a new one.");
    }
    if (this.#turns.childElementCount) return this.#notice(error.message);
    const view = this.#newView("");
    this.#turns.replaceChildren(view.element);
    view.fail(error.message, [["Try again", () => this.#open(id, { push: false })]]);
  }

  /** Something happened in one of this person's conversations, in any tab. */
  #happened({ event, conversation, request_id }) {
    this.#sidebar.refresh();
    if (!this.#conversation || (conversation && conversation !== this.#conversation)) return;
    if (this.#run && (!this.#run.request_id || this.#run.request_id === request_id)) return;
    if (event === "ended" && this.#leaf === request_id) return;
    if (event === "began") this.#open(this.#conversation, { push: false });
    else this.#compare();
  }

  /** Is the open conversation still as it is shown? Another tab may have gone on with it, or deleted it. */
  async #compare() {
    const id = this.#conversation;
    if (!id) return;
    try {
      const { conversation } = await call("GET", `/conversations/${id}`);
      if (id !== this.#conversation) return;
      this.#retitle(conversation.title);
      if (this.#run ? this.#run.request_id && conversation.requests[0] !== this.#run.request_id : conversation.requests.length || conversation.leaf !== this.#leaf) {
        if (!this.#refused) this.#open(id, { push: false });
      }
    } catch (error) {
      if (error.status === 404 && id === this.#conversation) this.#openFailed(id, error);
    }
  }

  #retitle(title) {
    if (title === undefined) return;
    document.title = title ? `${title} · FleetChat` : "FleetChat";
    setText($("heading"), title || "New chat");
  }

  // ---- Models, connection, and what is said about them ----

  #modelsChanged() {
    const model = this.#picker.model;
    const { title, text, progress } = this.#greeting(model);
    setText($("hero-title"), title);
    if ($("hero-text").textContent !== text.map(textOfNode).join("")) $("hero-text").replaceChildren(...text);
    $("hero-progress").hidden = progress === undefined;
    $("hero-progress").value = progress ?? 0;
    $("starters").hidden = !usable(model);
    $("hero-title").classList.toggle("long", title.length > LONG_TITLE);
    if (this.#run && !this.#run.answer?.end && (!this.#run.answer?.text || this.#run.answer.waiting)) this.#wait(this.#run);
    this.#buttons();
  }

  #greeting(model) {
    if (!this.#picker.known) return { title: "", text: [] };
    if (!model) return { title: "No model is running", text: ["Start one with ", h("code", {}, "fleetchat up"), ", or a worker: ", h("code", {}, "arq workers.Settings")] };
    const { name, state, description, progress, why } = model;
    if (state === "loading") {
      return { title: `${name} is loading`, text: [`${description ? `${description} ` : ""}You can write already: your message waits until the model is ready.`], progress: progress || 0 };
    }
    if (state === "failed") return { title: `${name} could not be loaded`, text: [why || "The worker's log has the cause.", " Pick another model above."] };
    if (state === "gone") return { title: `${name} has stopped`, text: ["Pick another model above, or start a worker for it: ", h("code", {}, `FLEETCHAT_MODEL=${name} arq workers.Settings`)] };
    return { title: `Ask ${name}`, text: [description || ""] };
  }

  #obstacle() {
    const model = this.#picker.model;
    if (!this.#picker.known) return "Still connecting. Your message can be sent in a moment.";
    if (!model) return "No model is running. Start one with: fleetchat up, or a worker: arq workers.Settings";
    if (model.state === "failed") return `${model.name} could not be loaded. Pick another model.`;
    if (model.state === "gone") return `${model.name} has stopped. Pick another model, or start a worker for it.`;
    return "";
  }

  #hint(text, loud = false) {
    setText($("hint"), text);
    $("hint").classList.toggle("loud", text !== HINT);
    if (loud) this.#announcer.say(text);
  }

  #buttons() {
    const running = Boolean(this.#run);
    $("hero").hidden = this.#turns.childElementCount > 0 || this.#conversation !== "";
    if ($("hint").textContent !== BUSY || !running) {
      // In an empty chat the greeting says it already.
      this.#hint($("hero").hidden && this.#picker.known && !usable(this.#picker.model) ? this.#obstacle() : HINT);
    }
    const hadFocus = document.activeElement === $("stop") || document.activeElement === $("send");
    $("send").hidden = running;
    $("stop").hidden = !running;
    const ready = this.#prompt.value.trim() !== "" && usable(this.#picker.model);
    $("send").setAttribute("aria-disabled", String(!ready));
    $("stop").setAttribute("aria-disabled", String(Boolean(this.#run?.stopping)));
    $("stop").setAttribute("aria-label", this.#run?.stopping ? "Stopping" : "Stop the answer");
    if (hadFocus && document.activeElement === document.body) this.#prompt.focus();
    for (const other of this.#turns.querySelectorAll(".turn.last")) other.classList.remove("last");
    if (this.#view) this.#view.last = !running && Boolean(this.#question);
  }

  #connected() {
    $("connection").hidden = true;
    if ($("hint").textContent === AWAY) this.#hint(HINT);
    if (this.#connectedBefore) {
      this.#sidebar.refresh();
      this.#compare();
    }
    this.#connectedBefore = true;
  }

  #away() {
    $("connection").hidden = false;
  }

  #notice(message) {
    const close = h("button", { class: "text-button", type: "button", onclick: () => ($("notice").hidden = true) }, "OK");
    $("notice").replaceChildren(h("p", {}, message), close);
    $("notice").hidden = false;
    clearTimeout(this.#noticeTimer);
    this.#noticeTimer = setTimeout(() => ($("notice").hidden = true), NOTICE_MS);
  }

  // ---- Theme ----

  #nextTheme() {
    const order = ["auto", "light", "dark"];
    const theme = order[(order.indexOf(recall("theme", "auto")) + 1) % order.length];
    remember("theme", theme);
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    this.#labelTheme(theme);
  }

  #labelTheme(theme) {
    setText($("theme-label"), `Theme: ${theme === "auto" ? "automatic" : theme}`);
  }
}

function textOf({ parts }, kind = "text") {
  return (Array.isArray(parts) ? parts : []).filter((part) => part.kind === kind).map((part) => part.text).join("");
}

function textOfNode(node) {
  return typeof node === "string" ? node : node.textContent;
}

function newRef() {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(7)), (byte) => byte.toString(16).padStart(2, "0"));
  return Date.now().toString(16).padStart(12, "0") + random.join("");
}

new ChatPage();
