/**
 * The messages that a column shows: a path through the conversation's tree, read from the server a page at a time.
 *
 * A node is {id, role, parent, versions, view, content, model, usage, reason, rating, note, end}. What the server says of the path is
 * laid over what is shown, so that nothing is drawn again that is there already and nothing moves.
 */

import { AnswerView, contentOf, loadMarkdown } from "./answer.js";
import { call } from "./api.js";
import { afterPaint } from "./dom.js";
import { t } from "./i18n.js";
import { QuestionView } from "./question.js";
import { Rest } from "./rest.js";
import { Follower } from "./scroll.js";

const FIRST = 12; // messages that are read when a conversation is opened
const PAGE = 16; // and of those before them
const AT_ONCE = 2; // that are shown at once above what is in view: a question and its answer
const NEAR_TOP = 600; // pixels
const LINE = 20; // pixels, or a little more
const AROUND = 3; // lines that a message takes besides its own

export class Path {
  nodes = [];
  host; // the page
  scroller;
  turns;
  follower;
  #act; // what a message's buttons do: (view, what, detail)
  #waiting = []; // earlier messages that were read, and are shown when somebody comes near them
  #more = false; // there are still earlier ones on the server
  #reading = 0; // the opening whose earlier messages come just now
  #opening = 0; // counts what was opened, so that a late answer of the server is recognised
  #asking = 0; // openings of which nothing is shown yet
  #loose = null; // a view that says that the last question has no answer

  constructor(host, { scroller, turns, latest }, act) {
    this.host = host;
    this.scroller = scroller;
    this.turns = turns;
    this.follower = new Follower(scroller, turns, latest);
    this.#act = act;
    new Rest(scroller, turns, { rest: (turn, place) => this.#rest(turn, place), wake: (place) => this.#wake(place), done: () => this.refresh() });
    scroller.addEventListener("scroll", () => this.#readEarlier(), { passive: true });
  }

  /** Id of the last stored message; "" in an empty chat. */
  get leaf() {
    return this.nodes.at(-1)?.id ?? "";
  }

  get empty() {
    return !this.turns.childElementCount;
  }

  /** Whether it shows that something is missing. */
  get stuck() {
    return this.#loose !== null;
  }

  /** The tokens that the last answer took, prompt and all. */
  get used() {
    const { prompt_tokens = 0, completion_tokens = 0 } = this.nodes.findLast((node) => node.usage)?.usage ?? {};
    return prompt_tokens + completion_tokens;
  }

  questionView(question) {
    const view = new QuestionView(question, (what, detail) => this.#act(view, what, detail));
    return view;
  }

  answerView(model) {
    const view = new AnswerView(model, (what, detail) => this.#act(view, what, detail));
    return view;
  }

  /** Show nothing. */
  clear() {
    this.#opening++;
    this.cutLoose();
    this.nodes = [];
    this.#waiting = [];
    this.#more = false;
    this.turns.replaceChildren();
  }

  /**
   * Show what the server has; gives its answer, or null if something else was opened meanwhile.
   *
   * `leaf`: which path; `lost`: an answer that is under way no longer; `around`: an element that must not move.
   */
  async open({ leaf = "", lost = "", count = FIRST, around = null } = {}) {
    const turn = ++this.#opening;
    const { conversation } = this.host;
    this.#asking++;
    const reading = call("GET", `/conversations/${conversation}?${new URLSearchParams({ leaf, count })}`);
    const [page] = await Promise.all([reading, loadMarkdown()]).finally(() => this.#asking--);
    if (turn !== this.#opening || conversation !== this.host.conversation) return null;
    const fill = () => this.#fill(page, leaf, lost);
    if (around) this.follower.around(around, fill);
    else fill();
    return page;
  }

  /** An answer begins or ends here: what the server is just saying may be of before, so it is asked again. */
  overtake() {
    if (!this.#asking) return;
    this.#opening++;
    this.host.reload();
  }

  #fill({ messages, more, running, leaf: tip }, wanted, lost) {
    const following = this.empty || tip !== this.leaf;
    const known = new Map(this.nodes.map((node) => [node.id, node]));
    if (this.run?.request_id) known.set(this.run.request_id, { view: this.run.view });
    const above = this.nodes.slice(0, 1 + this.nodes.findIndex(({ id }) => id === messages[0]?.parent));
    const here = running.filter(({ request_id, message }) => message === tip && request_id !== lost);
    if (!here.some(({ request_id }) => request_id === this.run?.request_id)) this.detach();
    this.cutLoose();
    let from = 0;
    if (!above.length) {
      const first = messages.findIndex(({ message_id }) => known.has(message_id));
      from = first < 0 ? this.#screenful(messages) : first;
      this.#waiting = messages.slice(0, from);
      this.#more = more;
    }
    this.nodes = [...above, ...messages.slice(from).map((message) => this.#node(message, known.get(message.message_id)))];
    this.lay();
    if (!this.run && this.nodes.at(-1)?.role === "user") {
      const free = here.filter(({ request_id }) => !this.host.shows(request_id));
      const found = free.find(({ request_id }) => request_id === wanted) ?? free.at(-1);
      if (found) this.takeUp(found);
      else this.missing(lost ? t("This answer got lost: the server no longer has it. Try again to have it written anew.") : t("This message has no answer yet."));
    }
    this.refresh();
    if (following) this.follower.toEnd();
    afterPaint().then(() => this.#readEarlier());
  }

  /** Bring a message into view, if it was read. */
  reveal(id) {
    while (this.#waiting.some(({ message_id }) => message_id === id)) this.#showEarlier();
    this.nodes.find((node) => node.id === id)?.view.element.scrollIntoView({ block: "nearest" });
  }

  /** Show the same as another column, in a chat that is stored nowhere. */
  copy(other) {
    this.nodes = other.nodes.map((node) => this.#show({ ...node }));
    this.lay();
    this.follower.toEnd();
  }

  #node(message, known) {
    const { message_id: id, role, parent, versions, parts, usage, reason, rating, note, model } = message;
    const content = role === "user" ? questionOf(parts) : contentOf(parts);
    const node = this.#show({ id, role, parent, versions, content, model, usage, reason, rating, note, end: message }, known);
    if (!known) {
      // Once as high as it is, not as high as one guesses; the browser remembers that when it is far from the window.
      const { style } = node.view.element;
      style.contentVisibility = "visible";
      afterPaint().then(() => (style.contentVisibility = ""));
    }
    return node;
  }

  #show(node, known) {
    node.view = known?.view ?? (node.role === "user" ? this.questionView(node.content) : this.answerView(node.model));
    node.view.node = node;
    if (node.role === "assistant" && !known?.id) node.view.finish(node.content, node.end);
    return node;
  }

  /** While a message is far from view, all there is of its view is the place that it takes. */
  #rest(turn, place) {
    const node = this.nodes.find(({ view }) => view.element === turn);
    if (!node) return;
    node.view = { element: place };
    turn.replaceWith(place);
  }

  #wake(place) {
    const node = this.nodes.find(({ view }) => view.element === place);
    if (!node) return;
    const { element } = this.#show(node).view;
    element.style.containIntrinsicBlockSize = `auto ${place.style.height}`; // it is not laid out before one sees it
    place.replaceWith(element);
  }

  /** Put the nodes' elements into the page, leaving those alone that are where they belong. */
  lay() {
    const elements = this.nodes.map((node) => node.view.element);
    if (this.run) elements.push(this.run.view.element);
    const wanted = new Set(elements);
    for (const element of [...this.turns.children]) if (!wanted.has(element)) element.remove();
    elements.forEach((element, i) => {
      if (this.turns.children[i] !== element) this.turns.insertBefore(element, this.turns.children[i] ?? null);
    });
  }

  /** The last question has no answer: say why, and offer one. */
  missing(sentence) {
    this.fail(sentence, () => this.again());
  }

  /** Say what is wrong, in the place of an answer; `again` tries it once more. */
  fail(sentence, again) {
    this.cutLoose();
    this.#loose = this.answerView("");
    this.#loose.fail(sentence, [[t("Try again"), again]]);
    this.turns.append(this.#loose.element);
    this.host.changed();
  }

  cutLoose() {
    this.#loose?.element.remove();
    this.#loose = null;
  }

  /** Where the messages begin that fill the window, or a little more: those before them can wait. */
  #screenful(messages) {
    let lines = 1 + this.scroller.clientHeight / LINE;
    let from = messages.length;
    while (from > 0 && (lines > 0 || messages[from]?.role === "assistant")) {
      const text = messages[--from].parts.map((part) => part.text).join("\n");
      lines -= AROUND + text.split("\n").length;
    }
    return from;
  }

  /** While somebody is near the first message: show those before it, a few at a time, so that the page stays quick. */
  async #readEarlier() {
    const turn = this.#opening;
    if (this.#reading === turn) return;
    this.#reading = turn;
    try {
      while (turn === this.#opening && (this.#waiting.length || this.#more) && this.scroller.scrollTop <= NEAR_TOP) {
        if (this.#waiting.length) this.#showEarlier();
        else await this.#read(turn);
        await afterPaint();
      }
    } catch {
      // The connection is away, and the page says so; scrolling asks again.
    } finally {
      if (this.#reading === turn) this.#reading = 0;
    }
  }

  async #read(turn) {
    const query = new URLSearchParams({ leaf: this.leaf, before: this.nodes[0].id, count: PAGE });
    const { messages, more } = await call("GET", `/conversations/${this.host.conversation}?${query}`);
    if (turn !== this.#opening) return;
    this.#waiting = messages;
    this.#more = more;
  }

  #showEarlier() {
    const [first] = this.nodes;
    const nodes = this.#waiting.splice(-AT_ONCE).map((message) => this.#node(message));
    this.follower.around(first.view.element, () => {
      this.nodes = [...nodes, ...this.nodes];
      this.turns.prepend(...nodes.map((node) => node.view.element));
      this.refresh();
    });
  }
}

function questionOf(parts) {
  const text = parts.filter((part) => part.kind === "text").map((part) => part.text).join("");
  return { text, files: parts.filter((part) => part.kind === "file").map(({ name, text: content }) => ({ name, text: content })) };
}
