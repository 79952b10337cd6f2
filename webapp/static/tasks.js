/** Task lists: an item that begins with [ ] or [x] gets a box. It is a sign and no control: the text is the model's. */

const BOX = /^\[([ xX])\](?:\s+|$)/;

/** The markdown-it plugin. `words(done)` is what screen readers hear. */
export function taskRules(md, words) {
  md.core.ruler.after("inline", "tasks", ({ tokens, Token }) => {
    for (let i = 2; i < tokens.length; i++) {
      if (tokens[i].type !== "inline" || tokens[i - 1].type !== "paragraph_open" || tokens[i - 2].type !== "list_item_open") continue;
      const first = tokens[i].children[0];
      const box = first?.type === "text" && BOX.exec(first.content);
      if (!box) continue;
      first.content = first.content.slice(box[0].length);
      const sign = new Token("task", "", 0);
      sign.meta = { done: box[1] !== " " };
      tokens[i].children.unshift(sign);
      tokens[i - 2].attrJoin("class", "task-item");
    }
  });
  md.renderer.rules.task = (tokens, i) => {
    const { done } = tokens[i].meta;
    return `<span class="task${done ? " done" : ""}" role="img" aria-label="${md.utils.escapeHtml(words(done))}"></span>`;
  };
}
