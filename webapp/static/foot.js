/** The sidebar's foot: how the page looks, the language that it speaks, and what keys there are. */

import { $, setText } from "./dom.js";
import { t } from "./i18n.js";
import { openHelp } from "./keys.js";
import { recall, remember } from "./store.js";

const THEMES = { auto: t("Theme: automatic"), light: t("Theme: light"), dark: t("Theme: dark"), contrast: t("Theme: contrast") };
const YEAR = 365 * 24 * 3600; // seconds

/** Its buttons work from now on. */
export function startFoot() {
  const label = () => setText($("theme-label"), THEMES[recall("theme", "auto")] ?? THEMES.auto);
  $("theme").addEventListener("click", () => {
    const order = Object.keys(THEMES);
    remember("theme", order[(order.indexOf(recall("theme", "auto")) + 1) % order.length]);
    dispatchEvent(new Event("theme")); // theme.js dresses the page
    label();
  });
  addEventListener("storage", ({ key }) => key === "theme" && label());
  label();
  $("help").addEventListener("click", openHelp);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => speak(button.dataset.language));
  }
}

async function speak(language) {
  document.cookie = `language=${language}; max-age=${YEAR}; path=/; samesite=lax`;
  await keepOffline().catch(() => {}); // without it, the page for no network keeps the language that it has
  location.reload();
}

async function keepOffline() {
  for (const name of (await globalThis.caches?.keys()) ?? []) await (await caches.open(name)).add("/offline");
}
