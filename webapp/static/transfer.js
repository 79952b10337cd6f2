/** "Your data": everything out as a file, conversations in from one, the links, and the archive. */

import { ApiError } from "./api.js";
import { follow } from "./conversation.js";
import { h } from "./dom.js";
import { n, t } from "./i18n.js";
import { openMenu } from "./menu.js";
import { toast } from "./toast.js";

/** The menu under its button. */
export function openData(sidebar, options, button) {
  openMenu(button, t("Your data"), [
    { label: t("Archive"), icon: "archive", act: () => sidebar.look({ archived: true, tag: "" }) },
    { label: t("Your links"), icon: "link", act: async () => (await import("./shares.js")).openShares(options) },
    { label: t("Export everything"), icon: "out", act: () => follow("/export", { download: "" }) },
    { label: t("Import a file…"), icon: "in", act: () => choose(sidebar, options) },
  ]);
}

function choose(sidebar, options) {
  const input = h("input", { type: "file", accept: ".json,.jsonl,application/json", hidden: true, id: "import-file" });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.remove();
    if (file) await take(sidebar, options, file);
  });
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input);
  input.click();
}

async function take(sidebar, options, file) {
  toast(t("Reading {name}…", file));
  try {
    const response = await fetch("/import", { method: "POST", body: file, headers: { Accept: "application/json", "Content-Type": "application/octet-stream" } });
    const answer = await response.json();
    if (!response.ok) throw new ApiError(answer.error);
    toast(n("{count} conversation was imported.", "{count} conversations were imported.", answer.conversations.length));
    sidebar.look({ archived: false, tag: "" });
  } catch (error) {
    const offline = t("The server cannot be reached. Check your connection and try again.");
    toast(t("{name} was not imported. {why}", { name: file.name, why: error instanceof ApiError ? error.message : offline }));
  }
}
