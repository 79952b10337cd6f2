/**
 * Footnotes: [^1] in a text, [^1]: … for the note. A note stays where it was written, nearly always at the end, so that
 * nothing moves while an answer grows. They are numbered in the order of their marks.
 *
 * Marks and notes of one answer know each other by `env.notes`: {prefix of the ids, count, found: label -> {number, defined}}.
 */

const MARK = /^\[\^([^\s\]]{1,40})\](?!\()/;
const NOTE = /^\[\^([^\s\]]{1,40})\]:[ \t]*/;
const INDENT = 4; // of what belongs to a note

/** What `env.notes` is before the first note of an answer. */
export function newNotes(prefix) {
  return { prefix, count: 0, found: new Map() };
}

/** The markdown-it plugin. `words` says what screen readers hear: mark(number), back. */
export function footnoteRules(md, words) {
  md.block.ruler.before("reference", "footnote", note, { alt: ["paragraph", "reference"] });
  md.inline.ruler.before("link", "footnote", mark);
  const escape = md.utils.escapeHtml;
  md.renderer.rules.footnote_mark = (tokens, i, options, env) => {
    const { number, first } = tokens[i].meta;
    const id = env.notes.prefix + number;
    const own = first ? ` id="${id}-mark"` : "";
    return `<sup><a class="footnote-mark" href="#${id}"${own} role="doc-noteref" aria-label="${escape(words.mark(number))}">${number}</a></sup>`;
  };
  md.renderer.rules.footnote_open = (tokens, i, options, env) => {
    const number = numberOf(env.notes, tokens[i].meta);
    return `<div class="footnote" id="${env.notes.prefix}${number}" role="doc-footnote" tabindex="-1"><span class="footnote-number">${number}.</span><div class="footnote-text">`;
  };
  md.renderer.rules.footnote_close = (tokens, i, options, env) =>
    `</div><a class="footnote-back" href="#${env.notes.prefix}${tokens[i].meta.number}-mark" role="doc-backlink" aria-label="${escape(words.back())}">↩\uFE0E</a></div>`;
}

function mark(state, silent) {
  const match = state.env.notes && MARK.exec(state.src.slice(state.pos, state.posMax));
  if (!match) return false;
  // While the answer grows, the note of a number is expected to come; of [^a-z] that is not sure.
  const there = state.env.notes.found.get(match[1])?.defined || (state.env.growing && /^\d+$/.test(match[1]));
  if (!there) return false;
  if (!silent) {
    const found = entry(state.env.notes, match[1]);
    state.push("footnote_mark", "", 0).meta = { first: !found.number, number: numberOf(state.env.notes, found) };
  }
  state.pos += match[0].length;
  return true;
}

function note(state, startLine, endLine, silent) {
  if (!state.env.notes || state.sCount[startLine] - state.blkIndent >= 4) return false;
  const start = state.bMarks[startLine] + state.tShift[startLine];
  const match = NOTE.exec(state.src.slice(start, state.eMarks[startLine]));
  if (!match || state.env.notes.found.get(match[1])?.defined) return false;
  if (silent) return true;
  const found = entry(state.env.notes, match[1]);
  found.defined = true;
  const opening = state.push("footnote_open", "div", 1);
  opening.meta = found;
  // The first line begins behind the colon; the others belong to the note as far as they are indented.
  const { parentType, blkIndent } = state;
  const line = [state.bMarks[startLine], state.tShift[startLine], state.sCount[startLine]];
  state.bMarks[startLine] = start + match[0].length;
  state.tShift[startLine] = 0;
  state.blkIndent += INDENT;
  state.sCount[startLine] = state.blkIndent;
  state.parentType = "footnote";
  state.md.block.tokenize(state, startLine, endLine);
  [state.bMarks[startLine], state.tShift[startLine], state.sCount[startLine]] = line;
  Object.assign(state, { parentType, blkIndent });
  opening.map = [startLine, state.line];
  state.push("footnote_close", "div", -1).meta = found;
  return true;
}

function entry({ found }, label) {
  if (!found.has(label)) found.set(label, { number: 0, defined: false });
  return found.get(label);
}

function numberOf(notes, note) {
  note.number ||= ++notes.count;
  return note.number;
}
