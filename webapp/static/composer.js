/**
 * The message box: text and files, sent by Enter; and the button that stops. Files come by button, drop and paste, where
 * the page takes files.
 */

import { $, setText } from "./dom.js";
import { fileChip, readFiles, sizeOf } from "./files.js";
import { n, t } from "./i18n.js";

export class Composer {
  #prompt = $("prompt");
  #chips = $("chips");
  #files = []; // {name, text, bytes}
  #limit = Number($("composer").dataset.limit); // bytes of a prompt that the server takes
  #hint = $("hint").textContent;
  #options;

  /** `options`: send(), stop(), changed(), problem(text), say(text) for screen readers. */
  constructor(options) {
    this.#options = options;
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      options.send();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // While a Chinese or Japanese word is being composed, Enter belongs to the input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      options.send();
    });
    this.#prompt.addEventListener("input", () => this.#typed());
    $("stop").addEventListener("click", () => options.stop());
    if (this.#chips) this.#takeFiles();
  }

  #takeFiles() {
    $("attach").addEventListener("click", () => $("files").click());
    $("files").addEventListener("change", () => {
      this.#add($("files").files);
      $("files").value = "";
    });
    this.#prompt.addEventListener("paste", (event) => {
      const { files } = event.clipboardData;
      if (!files.length || event.clipboardData.types.includes("text/plain")) return; // a sheet comes as text and as a picture
      event.preventDefault();
      this.#add(files);
    });
    this.#takeDrops();
  }

  /** What is in it: {text, files: [{name, text}]}. */
  get value() {
    return { text: this.#prompt.value, files: this.#files.map(({ name, text }) => ({ name, text })) };
  }

  get empty() {
    return !this.#prompt.value.trim() && !this.#files.length;
  }

  /** Put something in. */
  write({ text, files = [] }) {
    this.#prompt.value = text;
    this.#files = files.map((file) => ({ ...file, bytes: sizeOf(file.text) }));
    this.#draw();
    this.#typed();
  }

  focus(options) {
    this.#prompt.focus(options);
  }

  /** Which buttons there are: it may be sent when `ready`; while an answer is `running` there is Stop instead. */
  show({ running, stopping, ready }) {
    const hadFocus = document.activeElement === $("stop") || document.activeElement === $("send");
    $("send").hidden = running;
    $("stop").hidden = !running;
    $("send").setAttribute("aria-disabled", String(!ready || this.empty));
    $("stop").setAttribute("aria-disabled", String(stopping));
    $("stop").setAttribute("aria-label", stopping ? t("Stopping") : t("Stop the answer"));
    if (hadFocus && document.activeElement === document.body) this.#prompt.focus();
  }

  /** A line below the box; "" gives the usual one. */
  hint(text, loud = false) {
    setText($("hint"), text || this.#hint);
    $("hint").classList.toggle("loud", Boolean(text));
    if (loud) this.#options.say(text);
  }

  async #add(list) {
    const room = this.#limit - sizeOf(this.#prompt.value) - this.#files.reduce((sum, file) => sum + file.bytes, 0);
    const { files, problems } = await readFiles([...list], room); // the list itself is emptied meanwhile
    this.#files.push(...files);
    this.#draw();
    this.#typed();
    if (problems.length) this.#options.problem(problems.join(" "));
    if (files.length) this.#options.say(n("{count} file added", "{count} files added", files.length));
    this.#prompt.focus({ preventScroll: true });
  }

  #draw() {
    if (!this.#chips) return;
    const remove = (file) => {
      this.#files = this.#files.filter((other) => other !== file);
      this.#draw();
      this.#options.changed();
      this.#prompt.focus({ preventScroll: true });
    };
    this.#chips.replaceChildren(...this.#files.map((file) => fileChip(file, () => remove(file))));
    this.#chips.hidden = !this.#files.length;
  }

  #typed() {
    if (!CSS.supports("field-sizing", "content")) {
      this.#prompt.style.height = "auto";
      this.#prompt.style.height = `${this.#prompt.scrollHeight}px`;
    }
    this.#options.changed();
  }

  /** Files may be dropped anywhere on the page; while they are over it, it says so. */
  #takeDrops() {
    const zone = $("drop");
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      zone.hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) zone.hidden = true;
    });
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      zone.hidden = true;
      if (!document.querySelector("dialog[open]")) this.#add(event.dataTransfer.files);
    });
  }
}
