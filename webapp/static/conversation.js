/** What can be done with a conversation in the list, from its menu. The sidebar shows it at once, the server keeps it. */

import { call } from "./api.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { openMenu as open } from "./menu.js";
import { toast } from "./toast.js";

/** The menu of one; `sidebar` and its `options` as in sidebar.js. */
export function openMenu(sidebar, options, conversation, button) {
  if (!conversation) return;
  const { conversation_id: id, pinned, archived } = conversation;
  const change = (changes, shown) => alter(sidebar, options, id, changes, shown);
  open(button, conversation.title || t("Untitled"), [
    { label: t("Rename"), icon: "pencil", act: () => sidebar.rename(id) },
    { label: pinned ? t("Unpin") : t("Pin"), icon: "pin", act: () => change({ pinned: !pinned }) },
    { label: t("Tags…"), icon: "tag", act: async () => (await import("./tags.js")).openTags(sidebar, options, id) },
    { label: t("Share…"), icon: "link", act: async () => (await import("./shares.js")).openShares(options, conversation) },
    { label: t("Export…"), icon: "out", act: () => exports(conversation, button) },
    archived
      ? { label: t("Take out of the archive"), icon: "archive", act: () => change({ archived: false }, null) }
      : { label: t("Archive"), icon: "archive", act: () => archive(sidebar, options, id, change) },
    { label: t("Delete"), icon: "trash", danger: true, act: () => remove(sidebar, options, conversation) },
  ]);
}

/** Change it at the server; `shown` is what the list shows meanwhile, null when it leaves the list. */
export async function alter(sidebar, options, id, changes, shown) {
  if (shown !== undefined) sidebar.alter(id, shown);
  try {
    await call("PATCH", `/conversations/${id}`, changes);
  } catch (error) {
    options.problem(error.message);
  }
  sidebar.refresh();
}

async function archive(sidebar, options, id, change) {
  await change({ archived: true }, null);
  toast(t("Archived. You find it under “Your data”."), t("Undo"), () => change({ archived: false }));
}

async function remove(sidebar, options, { conversation_id: id, title }) {
  const open = sidebar.active === id;
  sidebar.alter(id, null);
  try {
    await call("DELETE", `/conversations/${id}`);
  } catch (error) {
    if (error.status !== 404) {
      sidebar.refresh();
      return options.problem(error.message);
    }
  }
  options.deleted(id);
  toast(t("Deleted: {title}", { title: title || t("Untitled") }), t("Undo"), async () => {
    try {
      await call("POST", `/conversations/${id}/restore`);
      if (open) options.open(id);
    } catch (error) {
      options.problem(error.message);
    }
    sidebar.refresh();
  });
}

function exports({ conversation_id: id, title }, button) {
  const file = (format) => () => follow(`/conversations/${id}/export?format=${format}`, { download: "" });
  open(button, t("Export: {title}", { title }), [
    { label: t("Markdown"), act: file("md") },
    { label: t("JSON"), act: file("json") },
    { label: t("Print or PDF"), act: () => follow(`/c/${id}/print`, { target: "_blank" }) },
  ]);
}

/** Go where a link would. */
export function follow(href, attributes) {
  const link = h("a", { href, hidden: true, ...attributes });
  document.body.append(link);
  link.click();
  link.remove();
}
