/** How the page looks and which language it speaks, as its reader has chosen; used by the sidebar's foot and other headers. */

import { t } from "./i18n.js";
import { recall, remember } from "./store.js";

const THEMES = { auto: t("Theme: automatic"), light: t("Theme: light"), dark: t("Theme: dark"), contrast: t("Theme: contrast") };
const YEAR = 365 * 24 * 3600; // seconds

/** What the theme that is on is called. */
export function themeName() {
  return THEMES[recall("theme", "auto")] ?? THEMES.auto;
}

/** The next theme. */
export function turnTheme() {
  const order = Object.keys(THEMES);
  remember("theme", order[(order.indexOf(recall("theme", "auto")) + 1) % order.length]);
  dispatchEvent(new Event("theme")); // theme.js dresses the page
}

/** The whole site in this language. */
export async function speak(language) {
  document.cookie = `language=${language}; max-age=${YEAR}; path=/; samesite=lax`;
  await keepOffline().catch(() => {}); // without it, the page for no network keeps the language that it has
  location.reload();
}

async function keepOffline() {
  for (const name of (await globalThis.caches?.keys()) ?? []) await (await caches.open(name)).add("/offline");
}
