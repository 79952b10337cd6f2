/**
 * The arena and the page for two named models: one round at a time, from its first question to the vote.
 *
 * Comes in: frames of both sides over the websocket, and over HTTP the round as the server has it, whenever the page may
 * have missed something. What the models of a blind round are called this page knows only once the server says it.
 */

import { Announcer } from "./announce.js";
import { loadMarkdown } from "./answer.js";
import { call } from "./api.js";
import { Models } from "./arena_models.js";
import { LABELS, SIDES, TurnView } from "./arena_turn.js";
import { Votes } from "./arena_votes.js";
import { Composer } from "./composer.js";
import { $, setText } from "./dom.js";
import { number, t } from "./i18n.js";
import { openHelp, startKeys } from "./keys.js";
import { openMenu } from "./menu.js";
import { startNav } from "./nav.js";
import { Notice } from "./notice.js";
import { newRef } from "./run.js";
import { Follower } from "./scroll.js";
import { SettingsPanel } from "./settings.js";
import { Connection } from "./stream.js";

const LOOK_MS = 1000; // between two looks at answers that come to an end without this page
const LOOKS = 60; // then nothing comes any more

class ArenaPage {
  #kind = $("arena").dataset.kind;
  #token = $("arena").dataset.token;
  #characters = Number($("arena").dataset.characters);
  #home = `/${this.#kind === "blind" ? "arena" : "compare"}`;
  #battle = ""; // id of the round; "" before its first question was taken
  #round = null; // the round as the server has shown it last
  #turns = [];
  #names = SIDES.map((side) => LABELS[side]); // that are known of both sides
  #asked = null; // {ref, turn, text} that the server has not answered yet; text "" for both again
  #ref = ""; // of the turn that was accepted last
  #writing = false; // frames come
  #stopping = false;
  #votable = false;
  #voting = false;
  #why = ""; // the round is void
  #said = ""; // of what came of the round
  #timer = 0;
  #connectedBefore = false;
  #live = new Announcer($("live"));
  #readers = Object.fromEntries(SIDES.map((side) => [side, new Announcer($("live"), LABELS[side])]));
  #notice = new Notice();
  #follower = new Follower($("scroller"), $("turns"), $("latest"));
  #votes = new Votes({ vote: (winner) => this.#vote(winner), fresh: () => this.#begin() });
  #models = this.#kind === "named" ? new Models(() => this.#begin()) : null;
  #settings = this.#kind === "named" ? new SettingsPanel({ say: (text) => this.#live.say(text), problem: (text) => this.#notice.show(text) }) : null;
  #composer = new Composer({ send: () => this.#submit(), stop: () => this.#stop(), changed: () => this.#show(), problem: (text) => this.#notice.show(text), say: (text) => this.#live.say(text) });
  #connection;

  constructor() {
    this.#listen();
    const address = new URL(this.#kind === "blind" ? "/ws?blind" : "/ws", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.#connection = new Connection(address, {
      models: (models) => {
        this.#models?.update(models);
        this.#show();
      },
      event: () => {},
      accepted: () => {},
      refused: () => {},
      failed: (error) => this.#failed(error),
      connected: () => this.#connected(),
      away: () => ($("connection").hidden = false),
      other: (message) => this.#hear(message),
    });
    this.#visit();
    for (const sign of ["pointerdown", "keydown"]) addEventListener(sign, () => loadMarkdown().catch(() => {}), { once: true });
  }

  // ---- Input ----

  #listen() {
    startNav();
    const keys = [
      { keys: ["1"], what: t("A is better"), act: () => this.#votes.press("a") },
      { keys: ["2"], what: t("B is better"), act: () => this.#votes.press("b") },
      { keys: ["3"], what: t("Tie"), act: () => this.#votes.press("tie") },
      { keys: ["4"], what: t("Both are bad"), act: () => this.#votes.press("bad") },
      { keys: ["mod", "shift", "o"], what: t("New round"), act: () => this.#begin() },
      { keys: ["mod", "shift", "g"], what: t("Have both answer again"), act: () => $("again").click() },
      ...(this.#settings ? [{ keys: ["mod", ","], what: t("Answer settings"), act: () => $("settings-open").click() }] : []),
      { keys: ["/"], what: t("Go to the message box"), act: () => this.#composer.focus() },
      { keys: ["enter"], what: t("Send the message") },
      { keys: ["shift", "enter"], what: t("New line") },
      { keys: ["esc"], what: t("Stop both answers; then go to the votes") },
      { keys: ["?"], what: t("Keyboard shortcuts"), act: () => openHelp(keys) },
    ];
    startKeys(keys);
    document.addEventListener("keydown", (event) => this.#escape(event), true);
    $("starters").addEventListener("click", ({ target }) => target.closest("button") && this.#ask(target.closest("button").textContent));
    $("again").addEventListener("click", () => this.#again());
    $("more").addEventListener("click", () => this.#more());
    $("new-round").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.#begin();
    });
    for (const side of SIDES) for (const tab of names(side, ".side-tab")) tab.addEventListener("click", () => this.#look(side));
    addEventListener("popstate", () => this.#visit());
  }

  #escape(event) {
    if (event.key !== "Escape" || event.isComposing || document.querySelector(":popover-open, dialog[open]")) return;
    if (this.#busy) this.#stop();
    else this.#votes.focus();
  }

  /** In a narrow window one side is in view. */
  #look(shown) {
    $("arena").dataset.shown = shown;
    for (const side of SIDES) for (const tab of names(side, ".side-tab")) tab.setAttribute("aria-pressed", String(side === shown));
  }

  #submit() {
    const { text } = this.#composer.value;
    if (this.#composer.empty) return this.#composer.focus();
    if (this.#obstacle) return this.#composer.hint(this.#obstacle, true);
    if (text.length > this.#characters) return this.#composer.hint(t("A message here has {count} characters at most.", { count: number(this.#characters) }), true);
    this.#ask(text);
  }

  #ask(text) {
    if (this.#busy || this.#obstacle) return;
    const ref = newRef();
    const fresh = this.#battle ? { battle: this.#battle } : this.#models ? { kind: "named", models: this.#models.names } : {};
    if (!this.#connection.tell({ type: "battle", ref, token: this.#token, text, ...fresh, ...this.#chosen })) return;
    this.#notice.hide();
    this.#composer.write({ text: "" });
    const turn = this.#add(text);
    this.#await({ ref, turn, text });
    this.#follower.toEnd(true);
    this.#composer.focus({ preventScroll: true });
  }

  #again() {
    const ref = newRef();
    if (this.#busy || !this.#connection.tell({ type: "battle-again", ref, token: this.#token, battle: this.#battle, ...this.#chosen })) return;
    const turn = this.#turns.at(-1);
    turn.renew();
    this.#await({ ref, turn, text: "" });
    this.#composer.focus({ preventScroll: true });
  }

  /** What an ask carries of the settings, which only named models have. */
  get #chosen() {
    return this.#settings ? { settings: this.#settings.values } : {};
  }

  #await(asked) {
    this.#asked = asked;
    this.#votable = false;
    for (const side of SIDES) this.#readers[side].begin();
    this.#show();
  }

  #stop() {
    if (!this.#writing || this.#stopping) return;
    this.#stopping = this.#connection.tell({ type: "battle-stop", battle: this.#battle });
    this.#show();
  }

  async #vote(winner) {
    if (this.#voting) return;
    this.#voting = true;
    await this.#attempt(async () => this.#take(await this.#post("vote", { winner })));
    this.#voting = false;
  }

  #more() {
    const names = () => this.#attempt(async () => this.#take(await this.#post("reveal")));
    openMenu($("more"), t("More"), [
      { label: t("Share a link…"), icon: "link", act: async () => (await import("./shares.js")).openShares({}, { share: () => this.#post("share") }) },
      { label: t("Save as a picture"), icon: "out", act: () => this.#picture() },
      ...(this.#round?.revealed ? [] : [{ label: t("Show the names; a vote after that does not count"), icon: "flag", act: names }]),
    ]);
  }

  async #picture() {
    const { savePicture } = await import("./arena_picture.js");
    const turns = this.#turns.map(({ text, sides }) => ({ text, a: sides.a.text, b: sides.b.text }));
    await savePicture({ turns, names: this.#names, verdict: $("verdict").hidden ? "" : $("verdict-text").textContent });
  }

  // ---- What the server says ----

  #hear(message) {
    if (message.type === "bout") return message.ref === this.#asked?.ref ? this.#accepted(message) : this.#connection.tell({ type: "battle-stop", battle: message.battle });
    if (!this.#writing || message.battle !== this.#battle || message.turn !== this.#turns.length - 1) return;
    if (message.type === "side") this.#grow(message);
    else if (message.type === "void") this.#void(message.message);
    else if (message.type === "bout-end") this.#ended(message.vote);
  }

  #accepted({ battle, models }) {
    if (models) this.#name(models);
    this.#ref = this.#asked.ref;
    this.#asked = null;
    this.#writing = true;
    if (!this.#battle) history.pushState(null, "", `${this.#home}/${battle}`);
    this.#battle = battle;
    this.#show();
  }

  #grow(message) {
    const shown = this.#turns.at(-1).sides[message.side];
    shown.take(message);
    for (const name of names(message.side)) name.classList.toggle("growing", !shown.end);
    this.#readers[message.side].follow(shown.text);
  }

  /** What there is of the answers goes, also where the round cannot be read again. */
  #void(why) {
    this.#why = why;
    this.#turns.at(-1).renew();
  }

  #ended(votable) {
    this.#settle();
    for (const side of SIDES) this.#readers[side].end(this.#turns.at(-1).sides[side].text, "");
    if (votable) this.#live.say(t("Both answers are complete. You can vote now."));
    this.#reopen(); // what was held back while it was written, and what else has become of the round
  }

  #failed(error) {
    const refused = error.ref && error.ref === this.#asked?.ref;
    if (error.ref && !refused && error.ref !== this.#ref) return; // of a round that was left
    this.#notice.show(error.message);
    this.#settle();
    if (refused) this.#takeBack();
    else this.#reopen();
  }

  /** What was asked last did not become a turn. */
  #takeBack() {
    const { text, turn } = this.#asked;
    this.#asked = null;
    if (text) {
      this.#turns.pop();
      turn.element.remove();
      if (this.#composer.empty) this.#composer.write({ text });
    }
    this.#reopen();
    this.#show();
  }

  #connected() {
    $("connection").hidden = true;
    if (this.#connectedBefore) {
      this.#settle(); // no frame comes over this connection
      if (this.#asked) this.#notice.show(t("The connection was lost before both models had the question. Send it again."));
      if (this.#asked) this.#takeBack();
      else this.#reopen();
    }
    this.#connectedBefore = true;
    this.#show();
  }

  // ---- The round ----

  /** Show what the address says. */
  #visit() {
    const battle = new RegExp(`^${this.#home}/([\\w-]+)$`).exec(location.pathname)?.[1] ?? "";
    if (battle && battle === this.#battle) return;
    this.#begin({ push: false });
    this.#battle = battle;
    if (battle) $("hero").hidden = true;
    this.#reopen();
  }

  /** A new round. */
  #begin({ push = true } = {}) {
    if (this.#writing) this.#connection.tell({ type: "battle-stop", battle: this.#battle });
    this.#settle();
    this.#battle = "";
    this.#round = this.#asked = null;
    this.#why = this.#said = "";
    this.#turns = [];
    this.#votable = false;
    $("turns").replaceChildren();
    this.#look("a");
    this.#name(["", ""]);
    if (push && location.pathname !== this.#home) history.pushState(null, "", this.#home);
    this.#show();
    if (matchMedia("(pointer: fine)").matches) this.#composer.focus();
  }

  /** Read the round again. Answers that are under way elsewhere are looked at until they have ended. */
  async #reopen(looks = LOOKS) {
    const battle = this.#battle;
    clearTimeout(this.#timer);
    if (!battle) return;
    let waits = looks > 0;
    await this.#attempt(async () => {
      const round = await call("GET", `/battles/${battle}`);
      if (battle !== this.#battle || this.#busy) return (waits = false); // it has gone on meanwhile
      const last = round.turns.at(-1);
      waits &&= round.state === "open" && last && !(last.a && last.b);
      this.#take(round, !waits);
    });
    if (waits && battle === this.#battle) this.#timer = setTimeout(() => this.#reopen(looks - 1), LOOK_MS);
  }

  /** The round as the server has it. `whole`: nothing of it is still to come. */
  #take(round, whole = true) {
    this.#round = round;
    this.#settle();
    this.#votable = round.vote;
    this.#name(round.models);
    const drawn = this.#turns.map(({ text }) => text).join("\n") === round.turns.map(({ text }) => text).join("\n");
    if (!drawn) {
      this.#turns = [];
      $("turns").replaceChildren();
    }
    round.turns.forEach((shown, i) => {
      const turn = this.#turns[i] ?? this.#add(shown.text);
      if (round.state === "void" && i === round.turns.length - 1) turn.renew();
      turn.restore(shown);
      if (whole) turn.cut(round.why ? "withheld" : "cancelled");
    });
    if (!drawn) this.#follower.toEnd();
    if (round.kind === "named") this.#models?.show(round.models);
    this.#show();
  }

  #add(text) {
    const turn = new TurnView(text, this.#names);
    this.#turns.push(turn);
    $("turns").append(turn.element);
    return turn;
  }

  #settle() {
    this.#writing = this.#stopping = false;
    clearTimeout(this.#timer);
    for (const side of SIDES) for (const name of names(side)) name.classList.remove("growing");
  }

  /** Names of both sides; "" for one that is not known. */
  #name(models) {
    this.#names = SIDES.map((side, i) => models[i] || LABELS[side]);
    for (const turn of this.#turns) turn.names = this.#names;
    SIDES.forEach((side, i) => {
      for (const name of names(side)) {
        setText(name.querySelector(".side-label"), this.#names[i]);
        name.classList.toggle("won", this.#round?.winner === side);
      }
    });
    $("turns").dataset.won = this.#round?.winner ?? "";
  }

  /** What can be done now. */
  #show() {
    if (!this.#connection) return; // the page is still being put together
    const busy = this.#busy;
    const over = this.#round && (this.#round.state !== "open" || (this.#kind === "blind" && this.#round.revealed));
    const ended = !busy && this.#turns.at(-1)?.ended;
    $("hero").hidden = this.#battle !== "" || this.#turns.length > 0;
    $("sides").hidden = !this.#turns.length;
    $("again").disabled = !ended || (over && (this.#kind === "blind" || this.#round.state === "void"));
    $("more").disabled = !ended;
    this.#composer.show({ running: busy, stopping: this.#stopping || !this.#writing, ready: !this.#obstacle });
    if (!busy) this.#composer.hint(this.#connection.open ? this.#obstacle : "");
    if (!this.#turns.length) this.#votes.hide();
    else if (this.#round && this.#round.state !== "open" && !busy) this.#close();
    else this.#votes.offer(this.#votable && !busy);
  }

  #close() {
    const { why } = this.#round;
    const text = this.#votes.close({ ...this.#round, why: why || this.#why });
    if (text !== this.#said) this.#live.say(text);
    this.#said = text;
  }

  get #busy() {
    return Boolean(this.#asked) || this.#writing;
  }

  /** Why nothing can be asked now; "" if it can. */
  get #obstacle() {
    const { state, revealed } = this.#round ?? {};
    if (!this.#connection.open) return t("Still connecting. Your message can be sent in a moment.");
    if (state === "void" || (this.#kind === "blind" && (state === "voted" || revealed))) return t("This round is over. Begin a new one.");
    return this.#models?.obstacle ?? "";
  }

  #post(what, body = {}) {
    return call("POST", `/battles/${this.#battle}/${what}`, { token: this.#token, ...body });
  }

  async #attempt(work) {
    try {
      await work();
    } catch (error) {
      if (error.status === 404) this.#begin();
      this.#notice.show(error.message);
    }
  }
}

/** Where a side's name stands: over its answers, and on its tab. */
function names(side, which = "") {
  return document.querySelectorAll(`.side-name${which}[data-side=${side}]`);
}

new ArenaPage();
