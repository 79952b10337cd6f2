/** What a person can press inside an answer: copy code, wrap it, show a diagram or a picture, follow a footnote. */

import { copy, h } from "./dom.js";
import { t } from "./i18n.js";
import { recall, remember } from "./store.js";

const WRAP = "wrap";
const root = document.documentElement;
root.toggleAttribute("data-wrap", recall(WRAP, false) === true);

const DEEDS = { copy: copyCode, wrap: wrapCode, diagram: toggleDiagram, picture: showPicture };

/** Let the presses inside `element` do what they say. */
export function press(element) {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-deed]");
    if (button) DEEDS[button.dataset.deed]?.(button);
    const note = event.target.closest('a[href^="#note-"]');
    if (note) go(event, note.getAttribute("href").slice(1));
  });
}

/** Whether long lines are wrapped. */
export function wraps() {
  return root.hasAttribute("data-wrap");
}

async function copyCode(button) {
  await copy(button.closest(".code").querySelector("code").textContent, button);
  button.textContent = t("Copied");
  setTimeout(() => (button.textContent = t("Copy")), 1600);
}

function wrapCode(button) {
  const top = button.getBoundingClientRect().top;
  root.toggleAttribute("data-wrap");
  remember(WRAP, wraps());
  for (const other of document.querySelectorAll("[data-deed=wrap]")) other.setAttribute("aria-pressed", String(wraps()));
  // Blocks above have changed their height too; what was pressed stays where it is.
  const scroller = button.closest(".scroller") ?? document.scrollingElement;
  scroller.scrollTop += button.getBoundingClientRect().top - top;
}

async function toggleDiagram(button) {
  const block = button.closest(".code");
  const pre = block.querySelector("pre");
  block.querySelector(".code-problem")?.remove();
  if (pre.hidden) {
    block.querySelector("iframe")?.remove();
    pre.hidden = false;
    delete block.dataset.kept;
    button.textContent = t("Show diagram");
    return;
  }
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  button.textContent = t("Drawing…");
  const text = pre.textContent;
  block.dataset.kept = text;
  try {
    const { sandboxed } = await import("./sandbox.js");
    await sandboxed("diagram", { text }, t("Diagram"), pre);
    pre.hidden = true;
    button.textContent = t("Show code");
  } catch ({ message }) {
    const why = message ? t("This diagram cannot be drawn: {why}", { why: message }) : t("This diagram cannot be drawn.");
    pre.before(h("p", { class: "code-problem", role: "status" }, why));
    button.textContent = t("Show diagram");
  }
  button.removeAttribute("aria-busy");
}

async function showPicture(button) {
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  const { address, label } = button.dataset;
  button.dataset.kept = address;
  try {
    const { sandboxed } = await import("./sandbox.js");
    const frame = await sandboxed("picture", { address, label }, label || t("Picture"), button);
    button.hidden = true;
    if (document.activeElement === button || document.activeElement === document.body) frame.focus();
  } catch {
    button.textContent = t("The picture cannot be loaded: {address}", { address });
  }
  button.removeAttribute("aria-busy");
}

// Not by the address bar: a change there is a visit for the page.
function go(event, id) {
  event.preventDefault();
  const target = document.getElementById(id);
  target?.scrollIntoView({ block: "nearest" });
  target?.focus({ preventScroll: true });
}
