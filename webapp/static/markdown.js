/**
 * Markdown as safe HTML, also while it is still being written.
 *
 * A text grows at its end, and so do its top-level blocks: all but the last can no longer change. LiveMarkdown therefore
 * renders closed blocks once and only the open one again, and patches the page instead of replacing it, so that nothing
 * flickers and a selection stays.
 */

import { press } from "./controls.js";
import { newKnowledge, parse, render } from "./flavour.js";
import { typeset } from "./math.js";
import { heldBack, settle } from "./tables.js";

const PAUSE_MS = 50; // between two renderings of the open block
const PATIENCE = 5; // and, with layout and paint, never more than a sixth of the time
const COLOURS_MS = 1000; // between two colourings of code that grows

/** A text's Markdown inside one element; `set` it as often as you like while it grows, then `finish` it. */
export class LiveMarkdown {
  static #made = 0;
  #prefix = `note-${++LiveMarkdown.#made}-`; // of this text's ids
  #element;
  #coming = ""; // the text that is rendered next
  #text = "";
  #offset = 0; // of the first character that is not in a closed block
  #closed = 0; // elements of closed blocks
  #known = newKnowledge(this.#prefix); // from closed blocks
  #timer = 0;
  #cost = 0;
  #last = 0;
  #colourAt = 0;

  constructor(element) {
    this.#element = element;
    press(element);
  }

  /** The text so far. Rendered soon, at most about twenty times a second. */
  set(text) {
    this.#coming = text;
    if (this.#timer) return;
    const pause = Math.max(PAUSE_MS, PATIENCE * this.#cost) - (performance.now() - this.#last);
    this.#timer = setTimeout(() => requestAnimationFrame(() => this.#timer && this.#grow()), Math.max(0, pause));
  }

  /** The whole text; rendered at once. */
  finish(text) {
    this.#take(text);
    const begun = this.#offset;
    this.#render(false);
    // A definition may stand after its use, and of a note that was expected there may be none.
    if (begun && (Object.keys(this.#known.references).length || this.#known.notes.found.size)) this.#again();
    enhance(this.#element);
  }

  #grow() {
    this.#take(this.#coming);
    this.#render(true);
  }

  #take(text) {
    const plain = text.replace(/\r\n?/g, "\n");
    if (!plain.startsWith(this.#text.slice(0, this.#offset))) this.#reset();
    this.#text = plain;
  }

  #reset() {
    this.#offset = this.#closed = 0;
    this.#known = newKnowledge(this.#prefix);
  }

  #again() {
    this.#reset();
    this.#render(false);
  }

  #render(open) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const begun = performance.now();
    const from = this.#closed;
    const blocks = open ? this.#growing() : this.#close(this.#text.slice(this.#offset), false);
    patch(this.#element, from, blocks);
    for (let i = from; i < this.#closed; i++) enhance(this.#element.children[i]);
    if (open) this.#openLast();
    this.#last = performance.now();
    setTimeout(() => {
      this.#last = performance.now(); // the frame has been painted
      this.#cost = this.#last - begun;
    });
  }

  /** What is not closed yet, of which it closes what will not change any more. */
  #growing() {
    const text = this.#text.slice(this.#offset);
    const tail = text.slice(0, text.length - heldBack(text));
    const env = this.#env();
    const tokens = parse(tail, env);
    const length = closedLength(tokens, tail);
    if (!length) return render(tokens, env);
    const blocks = this.#close(tail.slice(0, length), true);
    const after = this.#env();
    blocks.append(render(parse(tail.slice(length), after), after));
    return blocks;
  }

  /** Blocks that are rendered once and for all. */
  #close(text, growing) {
    const env = { ...this.#known, growing };
    const blocks = render(parse(text, env), env);
    this.#offset += text.length;
    this.#closed += blocks.childElementCount;
    return blocks;
  }

  /** For what may still change: it sees the definitions so far, and its own are forgotten. */
  #env() {
    return { ...structuredClone(this.#known), open: true, growing: true };
  }

  #openLast() {
    const last = this.#element.lastElementChild;
    if (!last) return;
    settle(last);
    this.#colour(last);
  }

  /** Colours for long code before it is complete, now and then. */
  #colour(block) {
    const code = block.querySelector(":scope > pre > code[data-language]");
    if (!code || performance.now() < this.#colourAt || getSelection().type === "Range") return; // a selection stays
    this.#colourAt = Infinity;
    import("./code.js")
      .then(({ colour }) => colour(code, true))
      .then((cost) => (this.#colourAt = performance.now() + Math.max(COLOURS_MS, 20 * cost)), () => {});
  }
}

/**
 * How much of `tail` is in blocks that later characters cannot change: what stands before the last block whose first
 * line is complete (before, `*` could still become a word of the paragraph above).
 */
function closedLength(tokens, tail) {
  const starts = tokens.filter((token) => token.level === 0 && token.nesting >= 0 && token.map).map((token) => token.map[0]);
  const lines = [0]; // where each line begins
  for (let at = tail.indexOf("\n"); at >= 0; at = tail.indexOf("\n", at + 1)) lines.push(at + 1);
  const last = starts.findLast((line) => line < lines.length - 1);
  return lines[last ?? 0];
}

/** Colour the code and set the formulas of a block that will not change any more; both are loaded when first needed. */
function enhance(element) {
  const codes = element.querySelectorAll("code[data-language]:not([data-coloured=whole])");
  if (codes.length) import("./code.js").then(({ colour }) => codes.forEach((code) => colour(code)));
  formulas(element);
}

function formulas(element) {
  if (element.matches(".math:not([data-set])") || element.querySelector(".math:not([data-set])")) {
    typeset(element.parentElement ?? element);
  }
}

/** Make the children of `element` from number `from` on look like `fragment`, touching only what differs. */
function patch(element, from, fragment) {
  const old = Array.from({ length: element.childNodes.length - from }, (_, i) => element.childNodes[from + i]);
  sync(element, old, [...fragment.childNodes]);
  for (let child = element.childNodes[from]; child; child = child.nextSibling) formulas(child);
}

function sync(parent, old, fresh) {
  fresh.forEach((node, i) => {
    const there = old[i];
    if (!there) parent.append(node);
    else if (there.nodeName !== node.nodeName) there.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) syncText(there, node.data);
    else morph(there, node);
  });
  for (const node of old.slice(fresh.length)) node.remove();
}

function syncText(node, text) {
  if (node.data === text) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function morph(old, fresh) {
  // What was made of a source (a formula, a diagram, a picture, colours) stays as long as that is the same.
  if (old.dataset.tex !== undefined && old.dataset.tex === fresh.dataset.tex && old.className === fresh.className) return;
  if (old.dataset.kept !== undefined && old.dataset.kept === (fresh.dataset.address ?? fresh.querySelector("code")?.textContent)) return;
  if (old.dataset.coloured !== undefined && fresh.textContent.startsWith(old.textContent)) {
    const more = fresh.textContent.slice(old.textContent.length);
    if (!more) return;
    old.append(more);
    old.dataset.coloured = "";
    return;
  }
  // A style is never in what was rendered: it is the widths of a settled table.
  for (const { name } of [...old.attributes]) if (name !== "style" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  sync(old, [...old.childNodes], [...fresh.childNodes]);
}
