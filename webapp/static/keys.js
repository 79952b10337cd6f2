/** Every shortcut of the page in one table: by it they work, and the help sheet is made of it. */

import { $ } from "./dom.js";
import { t } from "./i18n.js";

const WRITING = "input, textarea, select, [contenteditable], [role=listbox], [role=menu], dialog";

/** {keys, what} and, where this module does it, `act`; "mod" is Ctrl, and ⌘ on a Mac. */
export const KEYS = [
  { keys: ["mod", "shift", "o"], what: t("New chat"), act: () => $("side-new").click() },
  { keys: ["mod", "k"], what: t("Search your conversations"), act: search },
  { keys: ["mod", "shift", "s"], what: t("Show or hide the conversations"), act: () => $($("sidebar").inert ? "side-open" : "side-close").click() },
  { keys: ["mod", "shift", "m"], what: t("Pick a model"), act: () => $("picker").click() },
  { keys: ["mod", ","], what: t("Answer settings"), act: () => $("settings-open").click() },
  { keys: ["/"], what: t("Go to the message box"), act: () => $("prompt").focus() },
  { keys: ["enter"], what: t("Send the message") },
  { keys: ["shift", "enter"], what: t("New line") },
  { keys: ["esc"], what: t("Stop the answer") },
  { keys: ["mod", "shift", "c"], what: t("Copy the last answer"), act: () => press("copy") },
  { keys: ["mod", "shift", "g"], what: t("Write the last answer again"), act: () => press("again") },
  { keys: ["?"], what: t("Keyboard shortcuts"), act: () => openHelp() },
];

/** The shortcuts in this table work from now on. */
export function startKeys(table = KEYS) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.repeat || event.altKey || document.querySelector("dialog[open]")) return;
    const found = table.find(({ keys, act }) => act && pressed(event, keys));
    if (!found) return;
    event.preventDefault();
    found.act();
  });
}

/** The sheet that lists them. */
export async function openHelp(table = KEYS) {
  (await import("./help.js")).showHelp(table);
}

function pressed(event, keys) {
  if (event.key.toLowerCase() !== keys.at(-1)) return false;
  const mod = event.ctrlKey || event.metaKey;
  if (!keys.includes("mod")) return !mod && !event.target.closest?.(WRITING); // Shift makes the sign on some keyboards
  return mod && event.shiftKey === keys.includes("shift");
}

function search() {
  if ($("sidebar").inert) $("side-open").click();
  $("search").focus();
  $("search").select();
}

function press(name) {
  const button = [...document.querySelectorAll(`.turn.answer [data-act=${name}]`)].at(-1);
  if (button?.checkVisibility({ visibilityProperty: true })) button.click();
}
