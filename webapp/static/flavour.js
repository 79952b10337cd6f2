/**
 * The Markdown that models write, as safe elements: CommonMark with tables, task lists, footnotes, formulas, and emphasis
 * that knows Chinese. Everything passes DOMPurify, although markdown-it lets no HTML through.
 */

import markdownit from "./vendor/markdown-it/markdown-it.esm.min.js";
import "./vendor/dompurify/purify.min.js";
import { wraps } from "./controls.js";
import { emphasisRules } from "./emphasis.js";
import { footnoteRules, newNotes } from "./footnotes.js";
import { t } from "./i18n.js";
import { mathRules } from "./math.js";
import { taskRules } from "./tasks.js";

const { DOMPurify } = globalThis;

const md = markdownit({ html: false, linkify: true, breaks: true });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.use(mathRules);
md.use(emphasisRules);
md.use(taskRules, (done) => (done ? t("Done") : t("To do")));
md.use(footnoteRules, { mark: (number) => t("Footnote {number}", { number }), back: () => t("Back to the text") });
const escape = md.utils.escapeHtml;
const { rules } = md.renderer;

// The page's own headings come first: an answer's begin at the third level, and leave none out on the way down.
md.core.ruler.push("outline", ({ tokens, env: { outline } }) => {
  tokens.forEach((token, i) => {
    if (token.type !== "heading_open") return;
    const level = Number(token.tag.slice(1));
    outline.top ??= level;
    outline.last = Math.max(3, Math.min(3 + level - outline.top, outline.last + 1, 6));
    token.tag = tokens[i + 2].tag = `h${outline.last}`;
  });
});

// Inline styles are forbidden by the page's policy: the alignment of a column becomes a class.
for (const rule of ["th_open", "td_open"]) {
  rules[rule] = (tokens, i, options, env, self) => {
    const aligned = /text-align:(\w+)/.exec(tokens[i].attrGet("style") ?? "");
    tokens[i].attrs = aligned ? [["class", `align-${aligned[1]}`]] : null;
    return self.renderToken(tokens, i, options);
  };
}
rules.table_open = () => `<div class="table" role="group" aria-label="${escape(t("Table"))}" tabindex="0"><table>`;
rules.table_close = () => "</table></div>";

rules.fence = (tokens, i, options, env) => codeBlock(tokens[i].content, tokens[i].info.trim().split(/\s+/)[0], env);
rules.code_block = (tokens, i, options, env) => codeBlock(tokens[i].content, "", env);

function codeBlock(code, language, env) {
  const name = escape(language);
  const button = (deed, label, more = "") => `<button type="button" class="code-${deed}" data-deed="${deed}"${more}>${escape(label)}</button>`;
  // What is still being written is no diagram yet.
  const diagram = language === "mermaid" && !env.open ? button("diagram", t("Show diagram")) : "";
  const label = language ? t("Code in {language}", { language }) : t("Code");
  return (
    `<div class="code"><div class="code-bar"><span class="code-language">${name || escape(t("text"))}</span>` +
    diagram +
    button("wrap", t("Wrap"), ` aria-pressed="${wraps()}"`) +
    button("copy", t("Copy")) +
    `</div><pre role="group" aria-label="${escape(label)}" tabindex="0"><code${name ? ` data-language="${name}"` : ""}>${escape(code)}</code></pre></div>`
  );
}

// A picture from elsewhere would tell that place who reads. It is loaded when a person asks for it, and in a sandbox.
rules.image = (tokens, i, options, env, self) => {
  const token = tokens[i];
  const source = token.attrGet("src") ?? "";
  const label = self.renderInlineAsText(token.children ?? [], options, env);
  if (source.startsWith("data:")) return `<img src="${escape(source)}" alt="${escape(label)}">`;
  const host = /^https?:\/\//i.test(source) && URL.canParse(source) && new URL(source).host;
  const linked = tokens.slice(0, i).reduce((depth, { type }) => depth + (type === "link_open") - (type === "link_close"), 0);
  if (!host || linked) return escape(label || source);
  const text = label ? t("Show picture: {label} ({host})", { label, host }) : t("Show picture ({host})", { host });
  return (
    `<span class="picture" data-address="${escape(source)}">` +
    `<button type="button" data-deed="picture" data-address="${escape(source)}" data-label="${escape(label)}">${escape(text)}</button></span>`
  );
};

const purifier = DOMPurify();
const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a blockquote br button code del div em h3 h4 h5 h6 hr img li ol p pre s span strong".split(" "),
    ..."sup table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: "href src alt title class start type role id aria-label aria-pressed tabindex".split(" "),
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node.id && !/^note-\d+-\d+(-mark)?$/.test(node.id)) node.removeAttribute("id");
  if (node.tagName !== "A") return;
  const address = node.getAttribute("href") ?? "";
  if (/^#note-\d+-\d+(-mark)?$/.test(address)) return;
  if (!/^(https?:|mailto:)/i.test(address)) node.removeAttribute("href");
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** What is known before the first block: link definitions, footnotes (with ids that begin so) and the headings' levels. */
export function newKnowledge(prefix) {
  return { references: {}, notes: newNotes(prefix), outline: { top: null, last: 2 } };
}

/** The blocks of a text; `env` is what is known, with `growing` (more will come) and `open` (it may still change). */
export function parse(text, env) {
  return md.parse(text, env);
}

/** The elements of a text that was parsed with the same `env`. */
export function render(tokens, env) {
  const fragment = purifier.sanitize(md.renderer.render(tokens, md.options, env), ALLOWED);
  for (const node of [...fragment.childNodes]) if (node.nodeType !== Node.ELEMENT_NODE) node.remove();
  return fragment;
}
