/** The sidebar's foot: how the page looks, the language that it speaks, and what keys there are. */

import { $, setText } from "./dom.js";
import { speak, themeName, turnTheme } from "./dress.js";
import { openHelp } from "./keys.js";

/** Its buttons work from now on. */
export function startFoot() {
  const label = () => setText($("theme-label"), themeName());
  $("theme").addEventListener("click", () => turnTheme() ?? label());
  addEventListener("storage", ({ key }) => key === "theme" && label());
  label();
  $("help").addEventListener("click", () => openHelp());
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => speak(button.dataset.language));
  }
}
