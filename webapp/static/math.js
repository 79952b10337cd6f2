/**
 * Formulas: $…$ and \(…\) in a line, $$…$$ and \[…\] on their own. markdown-it finds them, KaTeX sets them as MathML,
 * and KaTeX is loaded only when the first formula is complete.
 */

const MATHML = { USE_PROFILES: { mathMl: true }, RETURN_DOM_FRAGMENT: true };
const MACRO_LIMIT = 500; // a formula from a model may not grow without end

/** The markdown-it plugin. */
export function mathRules(md) {
  md.inline.ruler.before("escape", "formula", inlineFormula);
  md.block.ruler.before("fence", "formula", blockFormula, { alt: ["paragraph", "blockquote", "list"] });
  const escape = md.utils.escapeHtml;
  const element = (tag, token, name) =>
    `<${tag} class="math${name}" data-tex="${escape(token.content)}">${escape(token.content)}</${tag}>`;
  md.renderer.rules.formula = (tokens, i) => element("span", tokens[i], tokens[i].markup.length > 1 && tokens[i].markup !== "\\(" ? " display" : "");
  md.renderer.rules.formula_block = (tokens, i) => element("div", tokens[i], tokens[i].meta.open ? " display open" : " display");
}

/** Set the formulas under `root` that are not set yet; at once, if KaTeX is there: before they have been painted. */
export async function typeset(root) {
  if (!globalThis.katex) await import("./vendor/katex/katex.min.js");
  for (const element of root.querySelectorAll(".math:not(.open):not([data-set])")) {
    element.dataset.set = "";
    const html = globalThis.katex.renderToString(element.dataset.tex, {
      output: "mathml",
      displayMode: element.classList.contains("display"),
      throwOnError: false,
      strict: "ignore",
      trust: false,
      maxExpand: MACRO_LIMIT,
      maxSize: 20,
    });
    // The source is in data-tex; inline styles are forbidden by the page's policy.
    const bare = html.replace(/<annotation[\s\S]*?<\/annotation>|<\/?semantics>| style="[^"]*"/g, "");
    element.replaceChildren(globalThis.DOMPurify.sanitize(bare, MATHML));
  }
}

const CLOSING = { "$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]" };

function inlineFormula(state, silent) {
  const { src, pos } = state;
  const opening = ["$$", "\\(", "\\[", "$"].find((mark) => src.startsWith(mark, pos));
  if (!opening) return false;
  const start = pos + opening.length;
  const end = closingAt(src, start, state.posMax, CLOSING[opening]);
  if (end < 0) return false;
  const tex = src.slice(start, end);
  // $5 and US$10 is money, $A:$B are variables: a formula's dollars touch it, and on the outside no letter and no digit.
  if (opening === "$" && (/^\s|\s$/.test(tex) || /\w/.test(src[pos - 1] ?? "") || /\w/.test(src[end + 1] ?? ""))) return false;
  if (opening === "\\[" && src[end + 2] === "(") return false; // \[no link\](…)
  if (!tex.trim()) return false;
  if (!silent) {
    const token = state.push("formula", "", 0);
    token.content = tex.trim();
    token.markup = opening;
  }
  state.pos = end + opening.length;
  return true;
}

function closingAt(src, start, limit, mark) {
  for (let at = src.indexOf(mark, start); at >= 0 && at < limit; at = src.indexOf(mark, at + 1)) {
    if (mark[0] === "\\" || src[at - 1] !== "\\") return at;
  }
  return -1;
}

function blockFormula(state, startLine, endLine, silent) {
  if (state.sCount[startLine] - state.blkIndent >= 4) return false;
  const first = state.src.slice(state.bMarks[startLine] + state.tShift[startLine], state.eMarks[startLine]);
  const opening = ["$$", "\\["].find((mark) => first.startsWith(mark));
  if (!opening) return false;
  const closing = CLOSING[opening];
  const lines = [];
  let closed = false;
  let line = startLine;
  for (; line < endLine && !closed; line++) {
    if (line > startLine && (state.isEmpty(line) || state.sCount[line] < state.blkIndent)) return false; // as in LaTeX
    let text = line === startLine ? first.slice(2) : state.getLines(line, line + 1, state.blkIndent, false);
    const end = text.indexOf(closing);
    if (end >= 0) {
      if (text.slice(end + 2).trim()) return false; // words follow: it belongs to a paragraph
      text = text.slice(0, end);
      closed = true;
    }
    lines.push(text);
  }
  // While the answer is still being written, the end may be yet to come.
  if (!closed && !state.env.open) return false;
  if (closed && !lines.join("").trim()) return false;
  if (silent) return true;
  const token = state.push("formula_block", "", 0);
  token.block = true;
  token.content = lines.join("\n").trim();
  token.map = [startLine, line];
  token.markup = opening;
  token.meta = { open: !closed };
  state.line = line;
  return true;
}
