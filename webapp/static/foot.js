/** The sidebar's foot: how the page looks, and the language that it speaks. */

import { $, setText } from "./dom.js";
import { t } from "./i18n.js";
import { recall, remember } from "./store.js";

const THEMES = { auto: t("Theme: automatic"), light: t("Theme: light"), dark: t("Theme: dark") };
const YEAR = 365 * 24 * 3600; // seconds

/** Its buttons work from now on. */
export function startFoot() {
  const label = () => setText($("theme-label"), THEMES[recall("theme", "auto")] ?? THEMES.auto);
  $("theme").addEventListener("click", () => {
    const order = Object.keys(THEMES);
    const theme = order[(order.indexOf(recall("theme", "auto")) + 1) % order.length];
    remember("theme", theme);
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    label();
  });
  label();
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      document.cookie = `language=${button.dataset.language}; max-age=${YEAR}; path=/; samesite=lax`;
      location.reload();
    });
  }
}
