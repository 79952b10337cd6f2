/** Text and code files that go with a message: read, refused, and shown. */

import { h, icon } from "./dom.js";
import { number, t } from "./i18n.js";

const KILO = 1024;
const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A size for people. */
export function sizeText(bytes) {
  if (bytes < KILO) return t("{count} B", { count: number(bytes) });
  if (bytes < KILO * KILO) return t("{count} KB", { count: number(bytes / KILO, bytes < 10 * KILO ? 1 : 0) });
  return t("{count} MB", { count: number(bytes / KILO / KILO, 1) });
}

/** The UTF-8 bytes of a text. */
export function sizeOf(text) {
  return new Blob([text]).size;
}

/**
 * Read files as text.
 *
 * `room` are the bytes that they may have together. Gives {files: [{name, text, bytes}], problems: [sentence]}.
 */
export async function readFiles(list, room) {
  const files = [];
  const problems = [];
  for (const file of list) {
    if (file.size > room) {
      problems.push(t("{name} is too large: there is room for {size}.", { name: file.name, size: sizeText(Math.max(0, room)) }));
      continue;
    }
    const text = await textOf(file);
    if (text === null) problems.push(t("{name} is no text. Only text and code can be added, as UTF-8.", { name: file.name }));
    else if (!text.trim()) problems.push(t("{name} is empty.", { name: file.name }));
    else {
      files.push({ name: file.name, text, bytes: file.size });
      room -= file.size;
    }
  }
  return { files, problems };
}

async function textOf(file) {
  try {
    const text = utf8.decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null; // no UTF-8, or a folder
  }
}

/** A file as a chip; `remove` is called by its button. */
export function fileChip({ name, bytes }, remove) {
  const button = h("button", { class: "chip-remove", type: "button", "aria-label": t("Remove {name}", { name }), title: t("Remove"), onclick: remove }, icon("close"));
  return h("li", { class: "chip" }, icon("file"), h("span", { class: "chip-name" }, name), h("span", { class: "chip-size" }, sizeText(bytes)), button);
}

/** A file of a message that was sent: a chip that opens. Its text is put into the page when it does. */
export function foldedFile({ name, text }) {
  const content = h("pre", { class: "file-text", tabindex: 0, "aria-label": name });
  const head = h("summary", { class: "chip" }, icon("file"), h("span", { class: "chip-name" }, name), h("span", { class: "chip-size" }, sizeText(sizeOf(text))));
  const file = h("details", { class: "file" }, head, content);
  file.addEventListener("toggle", () => (content.textContent = file.open ? text : ""));
  return file;
}
