/**
 * The websocket, and the order of an answer's frames. No DOM here.
 *
 * The server sends frames {request_id, seq, epoch, text, kind?, data?, end?} and control messages, which have a `type`;
 * one websocket message is one or more msgpack maps back to back. A frame is taken when it has the next number; after a
 * lost connection the answer is asked for from that number on, so no character is lost or doubled. A question that the
 * server has not confirmed is sent again: by its `ref` the server knows it, if it had taken it already.
 */

import { told } from "./i18n.js";

const { encode, decodeMulti } = globalThis.MessagePack;

const FIRST_RETRY_MS = 300;
const LAST_RETRY_MS = 5000;
const STABLE_MS = 5000; // a connection that lived this long starts the backoff anew
const GRACE_MS = 700; // shorter interruptions are not shown
const TICK_MS = 5000;
const ASLEEP_MS = 30000; // a clock that jumped this far: the machine slept, and the connection is likely dead

/** One answer as its frames come in. */
export class Answer {
  request_id;
  next = 0; // number of the next frame
  end = null; // {reason, usage, timings, error} once it is finished
  text = "";
  reasoning = "";
  calls = []; // {name, text} of tools
  thought = 0; // seconds of reasoning before anything else, as seen from here
  waiting = null; // {place, seconds} while it waits in the queue
  stopping = false;
  onchange = null; // whoever shows it
  epoch = 0; // of the latest frame
  #frames = []; // {kind, text, data} by number
  #thinking = 0; // when the first thought came
  #asked = -1; // the number from which frames were asked for again

  constructor(request_id) {
    this.request_id = request_id;
  }

  /** Take a frame; true if it was new. `missing(from)` is called when frames before it have not come. */
  take(frame, missing) {
    if (frame.seq > this.next) {
      if (this.#asked !== this.next) {
        this.#asked = this.next;
        missing(this.next);
      }
      return false;
    }
    if (frame.seq < this.next) {
      if (frame.epoch <= this.epoch) return false;
      // Another worker went on from an earlier point: what we have from there on was never kept.
      this.#frames.length = frame.seq;
      this.text = this.reasoning = "";
      this.calls = [];
      for (const earlier of this.#frames) this.#add(earlier);
      this.end = null;
    }
    const piece = { kind: frame.kind ?? "text", text: frame.text ?? "", data: frame.data };
    this.#frames.push(piece);
    this.#add(piece);
    if (piece.kind === "reasoning") this.#thinking ||= performance.now();
    else if (this.#thinking) this.thought ||= (performance.now() - this.#thinking) / 1000;
    this.epoch = Math.max(this.epoch, frame.epoch);
    this.next = frame.seq + 1;
    this.waiting = null;
    this.end = frame.end ?? null;
    return true;
  }

  /** After a reconnect a gap may be asked for again. */
  renewed() {
    this.#asked = -1;
  }

  #add({ kind, text, data }) {
    if (kind === "text") this.text += text;
    else if (kind === "reasoning") this.reasoning += text;
    else if (kind === "tool") this.#call(Array.isArray(data) ? data : []);
  }

  #call(deltas) {
    const calls = [...this.calls]; // whoever shows them sees that they have changed
    for (const { index = 0, function: called = {} } of deltas) {
      const { name = "", text = "" } = calls[index] ?? {};
      calls[index] = { name: name || called.name || "", text: text + (called.arguments ?? "") };
    }
    this.calls = calls;
  }
}

/** The connection to the server: comes back by itself and goes on where it was. */
export class Connection {
  /** Unfinished answers by request id, shown or not. */
  answers = new Map();
  #address;
  #listeners;
  #socket = null;
  #number = 0; // of the socket, counting reconnects
  #delay = FIRST_RETRY_MS;
  #retry = 0;
  #shown = 0;
  #openedAt = 0;
  #tick = Date.now();
  #models = new Map(); // by name, in the server's order
  #asks = new Map(); // ref -> {message, socket: number of the socket it went out on; 0: of none yet}

  /**
   * `listeners`: models(list), event(map), accepted(map), refused(error map with ref), failed(error map with
   * request_id), connected(), away().
   */
  constructor(address, listeners) {
    this.#address = address;
    this.#listeners = listeners;
    addEventListener("online", () => this.#now(true));
    addEventListener("offline", () => this.#socket?.close());
    addEventListener("pageshow", (event) => event.persisted && this.#now(true));
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#woken());
    setInterval(() => this.#woken(), TICK_MS);
    this.#connect();
  }

  /** Send what wants an answer; kept until the server has it. Its `ref` comes back in accepted or refused. */
  ask(message) {
    this.#asks.set(message.ref, { message, socket: 0 });
    this.#sendAsks();
  }

  /** Forget an ask that was not sent yet; false if it is on its way already. */
  withdraw(ref) {
    if (this.#asks.get(ref)?.socket !== 0) return false;
    return this.#asks.delete(ref);
  }

  /** The answer with this id, followed from its first frame unless it is followed already. */
  follow(request_id) {
    let answer = this.answers.get(request_id);
    if (!answer) {
      answer = new Answer(request_id);
      this.answers.set(request_id, answer);
      this.resume(answer);
    }
    return answer;
  }

  /** Ask for the frames that we do not have. */
  resume(answer) {
    this.#send({ type: "resume", request_id: answer.request_id, from: answer.next, epoch: answer.epoch });
  }

  /** Send what is of no use later; false if there is no connection now. */
  tell(message) {
    this.#send(message);
    return this.open;
  }

  /** End an answer; its last frame will say so. */
  stop(answer) {
    answer.stopping = true;
    this.#send({ type: "stop", request_id: answer.request_id });
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #connect() {
    clearTimeout(this.#retry);
    const socket = new WebSocket(this.#address);
    const number = ++this.#number;
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened();
    socket.onmessage = (event) => number === this.#number && this.#received(event.data);
    socket.onclose = () => number === this.#number && this.#closed();
  }

  #opened() {
    this.#openedAt = Date.now();
    clearTimeout(this.#shown);
    this.#shown = 0;
    this.#listeners.connected();
    for (const answer of this.answers.values()) {
      answer.renewed();
      this.resume(answer);
      if (answer.stopping) this.stop(answer);
    }
    this.#sendAsks();
  }

  #closed() {
    this.#socket = null;
    if (this.#openedAt && Date.now() - this.#openedAt > STABLE_MS) this.#delay = FIRST_RETRY_MS;
    this.#openedAt = 0;
    this.#shown ||= setTimeout(() => this.#listeners.away(), GRACE_MS);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#connect(), this.#delay * (0.7 + 0.6 * Math.random()));
    this.#delay = Math.min(2 * this.#delay, LAST_RETRY_MS);
  }

  /** Connect without waiting; `afresh` also replaces a socket that says it is open. */
  #now(afresh) {
    const state = this.#socket?.readyState;
    if (state === WebSocket.CONNECTING || (state === WebSocket.OPEN && !afresh)) return;
    const old = this.#socket;
    this.#delay = FIRST_RETRY_MS;
    this.#connect(); // a higher number first: the old socket's closing is then nobody's business
    old?.close();
  }

  #woken() {
    const slept = Date.now() - this.#tick > ASLEEP_MS + TICK_MS;
    this.#tick = Date.now();
    if (document.visibilityState === "visible") this.#now(slept);
  }

  #send(message) {
    if (this.open) this.#socket.send(encode(message, { ignoreUndefined: true }));
  }

  #sendAsks() {
    if (!this.open) return;
    for (const ask of this.#asks.values()) {
      if (ask.socket === this.#number) continue;
      ask.socket = this.#number;
      this.#send(ask.message);
    }
  }

  #received(data) {
    const changed = new Set();
    for (const message of decodeMulti(data)) {
      if (message.type === undefined) this.#frame(message, changed);
      else this.#control(message, changed);
    }
    for (const answer of changed) answer.onchange?.(answer);
  }

  /** All models, after some have changed; `order` comes with them when it has, too, and names those that are left. */
  #modelsWith({ models, order }) {
    for (const model of models) this.#models.set(model.name, model);
    if (order) this.#models = new Map(order.map((name) => [name, this.#models.get(name)]));
    return [...this.#models.values()];
  }

  #frame(frame, changed) {
    const answer = this.answers.get(frame.request_id);
    if (!answer) return; // not ours any more, or of an answer that has ended here
    if (!answer.take(frame, () => this.resume(answer))) return;
    if (answer.end) this.answers.delete(answer.request_id);
    changed.add(answer);
  }

  #control(message, changed) {
    const answer = this.answers.get(message.request_id);
    switch (message.type) {
      case "models":
        this.#models = new Map();
      // falls through
      case "models_changed":
        return this.#listeners.models(this.#modelsWith(message));
      case "event":
        return this.#listeners.event(message);
      case "accepted":
        this.#asks.delete(message.ref);
        if (!answer) this.answers.set(message.request_id, new Answer(message.request_id));
        return this.#listeners.accepted(message);
      case "place":
      case "state":
        if (!answer) return;
        answer.waiting = message.state === "running" ? null : { place: message.place, seconds: message.seconds };
        changed.add(answer);
        return;
      case "error":
        message.message = told(message);
        if (this.#asks.delete(message.ref)) return this.#listeners.refused(message);
        return this.#listeners.failed(message);
      default:
        return this.#listeners.other?.(message);
    }
  }
}
