/**
 * Emphasis beside Chinese, Japanese and Korean: these write no blanks between words, and CommonMark takes a full stop
 * before ** for a sign that the emphasis cannot end there. So beside such a character punctuation counts as a letter.
 *
 * Source: https://github.com/tats-u/markdown-cjk-friendly, the amended rules of left- and right-flanking runs.
 */

const CJK = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}\p{sc=Bopomofo}\u3000-\u303f\uff01-\uffee]/u;

/** The markdown-it plugin. */
export function emphasisRules(md) {
  const { isWhiteSpace, isPunctChar, isMdAsciiPunct } = md.utils;
  const punctuation = (char) => isMdAsciiPunct(char.codePointAt(0)) || isPunctChar(char);

  md.inline.State = class extends md.inline.State {
    scanDelims(start, canSplitWord) {
      const mark = this.src[start];
      let end = start;
      while (end < this.posMax && this.src[end] === mark) end++;
      const before = [...this.src.slice(Math.max(0, start - 2), start)].at(-1) ?? " ";
      const after = end < this.posMax ? String.fromCodePoint(this.src.codePointAt(end)) : " ";
      const [blankBefore, blankAfter] = [before, after].map((char) => isWhiteSpace(char.codePointAt(0)));
      const [signBefore, signAfter] = [punctuation(before), punctuation(after)];
      const beside = CJK.test(before) || CJK.test(after);
      const left = !blankAfter && (!signAfter || blankBefore || signBefore || beside);
      const right = !blankBefore && (!signBefore || blankAfter || signAfter || beside);
      return {
        can_open: left && (canSplitWord || !right || signBefore),
        can_close: right && (canSplitWord || !left || signAfter),
        length: end - start,
      };
    }
  };
}
