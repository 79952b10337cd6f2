/** The header of pages beside the chat: how they look, and the language that they speak. */

import { $ } from "./dom.js";
import { speak, themeName, turnTheme } from "./dress.js";

/** Its buttons work from now on. */
export function startNav() {
  const button = $("theme");
  const label = () => ["aria-label", "title"].forEach((name) => button.setAttribute(name, themeName()));
  button.addEventListener("click", () => turnTheme() ?? label());
  addEventListener("storage", ({ key }) => key === "theme" && label());
  label();
  for (const other of document.querySelectorAll("[data-language]")) other.addEventListener("click", () => speak(other.dataset.language));
}
