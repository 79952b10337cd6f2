/** One answer under way in a column, from the wish for it to its last frame. */

/** A name for a question that the server has not seen: sortable by time, and the same when it is sent again. */
export function newRef() {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(7)), (byte) => byte.toString(16).padStart(2, "0"));
  return Date.now().toString(16).padStart(12, "0") + random.join("");
}

/** What was said before, without answers that came to nothing and what they were to answer. */
function historyOf(nodes) {
  const said = nodes.filter(({ role, content }, i) => (role === "user" ? nodes[i + 1]?.content.text !== "" : content.text !== ""));
  return said.map(({ role, content }) => ({ role, text: content.text, files: content.files ?? [] }));
}

/** An answer under way: what it was asked with, and what has come of it so far. */
export class Run {
  ref = newRef();
  request_id = ""; // once it is accepted
  answer = null; // its frames, see stream.js
  stopping = false;
  sent = false;
  companions = []; // runs of other columns that answer the same question
  kind; // ask, regenerate, continue, or resumed
  model; // its name
  view;
  question = null; // {text, files}: it goes out with this run
  asked = null; // the view of the question, while it is no node yet
  before = []; // nodes above the question
  parent = ""; // id of what the question follows
  message = ""; // id of the question
  begun = null; // {id, content}: the answer that goes on
  versions = []; // ids of the other versions, of the question where there is one, else of the answer
  cut = []; // nodes that were below, in case nothing comes of it

  constructor(what) {
    Object.assign(this, what);
  }

  /** What there is to show. */
  get content() {
    const { text = "", reasoning = "", calls = [], thought = 0 } = this.answer ?? {};
    const begun = this.begun?.content;
    if (!begun) return { text, reasoning, calls, thought };
    return { text: begun.text + text, reasoning: begun.reasoning + reasoning, calls: [...begun.calls, ...calls], thought };
  }

  /** What the server is sent; see webapp/protocol.py. */
  toMessage({ conversation, temporary, settings }) {
    const message = { ref: this.ref, model: this.model, settings };
    if (temporary) {
      const history = historyOf(this.before);
      return { ...message, type: "ask", temporary, history, ...this.question, begun: this.begun?.content.text ?? "" };
    }
    if (conversation) message.conversation = conversation;
    if (this.kind === "regenerate") return { ...message, type: "regenerate", message: this.message };
    if (this.kind === "continue") return { ...message, type: "continue", message: this.begun.id };
    return { ...message, type: "ask", ...this.question, ...(this.parent && conversation ? { parent: this.parent } : {}) };
  }
}
