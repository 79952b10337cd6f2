/** What this browser remembers: the theme, the sidebar, the settings, the last model. Never needed, so never an error. */

/** The value under `key`, or `fallback` where there is none or storage is forbidden. */
export function recall(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null") ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep `value` under `key`. */
export function remember(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // A private window or a full store: it is forgotten with the page.
  }
}
