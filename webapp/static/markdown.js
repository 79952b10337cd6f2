/**
 * Markdown as safe HTML, also while it is still being written.
 *
 * A text grows at its end, and so do its top-level blocks: all but the last can no longer change. LiveMarkdown therefore
 * renders closed blocks once and only the open one again, and patches the page instead of replacing it, so that nothing
 * flickers and a selection stays. Everything passes DOMPurify, although markdown-it lets no HTML through.
 */

import markdownit from "./vendor/markdown-it/markdown-it.esm.min.js";
import "./vendor/dompurify/purify.min.js";
import { t } from "./i18n.js";
import { mathRules } from "./math.js";

const { DOMPurify } = globalThis;
const PAUSE_MS = 50; // between two renderings of the open block
const PATIENCE = 4; // and never more than a fifth of the time

const md = markdownit({ html: false, linkify: true, breaks: true });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.use(mathRules);
const escape = md.utils.escapeHtml;

// The page's own headings come first: an answer's begin at the third level.
for (const rule of ["heading_open", "heading_close"]) {
  md.renderer.rules[rule] = (tokens, i, options, env, self) => {
    const level = Number(tokens[i].tag.slice(1));
    tokens[i].tag = `h${Math.min(6, level + 2)}`;
    return self.renderToken(tokens, i, options);
  };
}

// Inline styles are forbidden by the page's policy: the alignment of a column becomes a class.
for (const rule of ["th_open", "td_open"]) {
  md.renderer.rules[rule] = (tokens, i, options, env, self) => {
    const aligned = /text-align:(\w+)/.exec(tokens[i].attrGet("style") ?? "");
    tokens[i].attrs = aligned ? [["class", `align-${aligned[1]}`]] : null;
    return self.renderToken(tokens, i, options);
  };
}
md.renderer.rules.table_open = () => `<div class="table" role="region" aria-label="${t("Table")}" tabindex="0"><table>`;
md.renderer.rules.table_close = () => "</table></div>";

md.renderer.rules.fence = (tokens, i) => codeBlock(tokens[i].content, tokens[i].info.trim().split(/\s+/)[0]);
md.renderer.rules.code_block = (tokens, i) => codeBlock(tokens[i].content, "");

// A picture from elsewhere would tell that place who reads; a link tells it only when it is followed.
md.renderer.rules.image = (tokens, i, options, env, self) => {
  const token = tokens[i];
  const source = token.attrGet("src") ?? "";
  const label = self.renderInlineAsText(token.children ?? [], options, env);
  if (source.startsWith("data:")) return `<img src="${escape(source)}" alt="${escape(label)}">`;
  return `<a class="picture" href="${escape(source)}">Picture: ${escape(label || source)}</a>`;
};

function codeBlock(code, language) {
  const name = escape(language);
  return (
    `<div class="code"><div class="code-bar"><span>${name || "text"}</span>` +
    '<button type="button" class="code-copy">Copy</button></div>' +
    `<pre tabindex="0"><code${name ? ` data-language="${name}"` : ""}>${escape(code)}</code></pre></div>`
  );
}

const purifier = DOMPurify();
const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a blockquote br button code del div em h3 h4 h5 h6 hr img li ol p pre s span strong".split(" "),
    ..."table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["href", "src", "alt", "title", "class", "start", "type", "role", "aria-label", "tabindex"],
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  if (!/^(https?:|mailto:)/i.test(node.getAttribute("href") ?? "")) node.removeAttribute("href");
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** A text's Markdown inside one element; `set` it as often as you like while it grows, then `finish` it. */
export class LiveMarkdown {
  #element;
  #text = "";
  #offset = 0; // of the first character that is not in a closed block
  #closed = 0; // elements of closed blocks
  #references = {}; // link definitions of closed blocks
  #timer = 0;
  #cost = 0;
  #last = 0;

  constructor(element) {
    this.#element = element;
  }

  /** The text so far. Rendered soon, at most about twenty times a second. */
  set(text) {
    this.#take(text);
    if (this.#timer) return;
    const pause = Math.max(PAUSE_MS, PATIENCE * this.#cost) - (performance.now() - this.#last);
    this.#timer = setTimeout(() => requestAnimationFrame(() => this.#timer && this.#render(true)), Math.max(0, pause));
  }

  /** The whole text; rendered at once. */
  finish(text) {
    this.#take(text);
    this.#render(false);
    if (Object.keys(this.#references).length) this.#again(); // a definition may stand after its use
    enhance(this.#element);
  }

  #take(text) {
    const plain = text.replace(/\r\n?/g, "\n");
    if (!plain.startsWith(this.#text.slice(0, this.#offset))) this.#reset();
    this.#text = plain;
  }

  #reset() {
    this.#offset = this.#closed = 0;
    this.#references = {};
  }

  #again() {
    this.#reset();
    const env = { references: this.#references };
    patch(this.#element, 0, clean(md.render(this.#text, env)));
    this.#closed = this.#element.childElementCount;
    this.#offset = this.#text.length;
  }

  #render(open) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const begun = performance.now();
    let tail = this.#text.slice(this.#offset);
    const length = open ? closedLength(md.parse(tail, this.#env(open)), tail) : tail.length;
    if (length) {
      const env = { references: this.#references };
      const blocks = clean(md.render(tail.slice(0, length), env));
      const count = blocks.childElementCount;
      tail = tail.slice(length);
      blocks.append(clean(md.render(tail, this.#env(open))));
      patch(this.#element, this.#closed, blocks);
      for (let i = this.#closed; i < this.#closed + count; i++) enhance(this.#element.children[i]);
      this.#closed += count;
      this.#offset += length;
    } else {
      patch(this.#element, this.#closed, clean(md.render(tail, this.#env(open))));
    }
    this.#last = performance.now();
    this.#cost = this.#last - begun;
  }

  #env(open) {
    return { references: { ...this.#references }, open };
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

function clean(html) {
  const fragment = purifier.sanitize(html, ALLOWED);
  for (const node of [...fragment.childNodes]) if (node.nodeType !== Node.ELEMENT_NODE) node.remove();
  return fragment;
}

/** Colour the code and set the formulas of a block that will not change any more; both are loaded when first needed. */
function enhance(element) {
  const codes = element.querySelectorAll("code[data-language]:not([data-coloured])");
  if (codes.length) import("./code.js").then(({ colour }) => codes.forEach(colour));
  formulas(element);
}

function formulas(element) {
  if (element.matches(".math:not([data-set])") || element.querySelector(".math:not([data-set])")) {
    import("./math.js").then(({ typeset }) => typeset(element.parentElement ?? element));
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
  // A formula that is set, or code that is coloured, stays as long as its source is the same.
  if (old.dataset.tex !== undefined && old.dataset.tex === fresh.dataset.tex && old.className === fresh.className) return;
  if (old.dataset.coloured !== undefined && old.textContent === fresh.textContent) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  sync(old, [...old.childNodes], [...fresh.childNodes]);
}
