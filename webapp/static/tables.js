/** What is still being written so that what is there does not move: tables come row by row, marks with what they mark. */

const ROWS = /(?:^|\n)((?: {0,3}\|.*\n)*(?: {0,3}\|.*)?)$/; // the lines at a text's end that may be a table's
const MARK = /(?:^|\n)([ \t>]*(?:-+|=+)[ \t]*)$/; // of a list's item, but until more comes it makes a heading of the line above
const RULE = /^[-|: \t]*-[-|: \t]*$/; // below the head

/**
 * How many characters at the end of a text should not be shown yet: of a table its head without a row (until then it
 * looks like a paragraph, and its columns cannot have their widths), and the row that is being written; and a mark that
 * could be another one.
 */
export function heldBack(text) {
  const mark = MARK.exec(text);
  if (mark) return mark[1].length;
  const [, rows = ""] = ROWS.exec(text) ?? [];
  const lines = rows.split("\n");
  const last = lines.at(-1).length;
  if (lines.length > 2 && !RULE.test(lines[1])) return 0;
  return lines.length > 3 ? last : rows.length;
}

/** Let the columns of a block's table keep the widths that its first rows have given them. */
export function settle(block) {
  const table = block.querySelector(":scope > table");
  if (!table?.tBodies.length || table.style.tableLayout) return;
  const cells = [...table.rows[0].cells];
  const widths = cells.map((cell) => cell.getBoundingClientRect().width);
  const whole = widths.reduce((sum, width) => sum + width, 0);
  if (whole > block.clientWidth) table.style.minWidth = `${whole}px`;
  cells.forEach((cell, i) => (cell.style.width = `${(100 * widths[i]) / whole}%`));
  table.style.width = "100%";
  table.style.tableLayout = "fixed";
}
