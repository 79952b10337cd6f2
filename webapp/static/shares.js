/** Read-only links to snapshots: made for one conversation, and the list of all that there are. */

import { call } from "./api.js";
import { copy, h, icon } from "./dom.js";
import { t } from "./i18n.js";

/** A dialog; with a conversation it offers to make a link to what is shown of it; what has no id has its own way to `share` itself. */
export async function openShares(options, conversation = null) {
  const list = h("ul", { class: "shares" });
  const title = h("h2", { id: "shares-title" }, conversation ? t("Share this conversation") : t("Your links"));
  const problem = h("p", { class: "dialog-problem", role: "alert" });
  const make = h("button", { class: "button primary", type: "button" }, icon("link"), t("Make a link"));
  const offer = h("div", {}, h("p", {}, t("Whoever has the link can read the conversation as it is now, and nothing that comes later. It does not say who you are.")), make);
  const heading = h("h3", { class: "shares-heading", hidden: true }, t("Your links"));
  const done = h("button", { class: "button", type: "button", onclick: () => dialog.close() }, t("Done"));
  const dialog = h("dialog", { class: "dialog wide", "aria-labelledby": "shares-title" }, title, conversation && offer, problem, heading, list, h("div", { class: "panel-foot" }, done));
  dialog.addEventListener("close", () => dialog.remove());

  const attempt = async (work) => {
    try {
      problem.textContent = "";
      await work();
    } catch (error) {
      problem.textContent = error.message;
    }
  };
  const none = h("li", { class: "side-empty" }, t("You have no links."));
  const count = () => {
    none.remove();
    heading.hidden = !conversation || !list.children.length;
    if (!conversation && !list.children.length) list.append(none);
  };
  const item = (share) => {
    const address = new URL(`/s/${share.share_id}`, location.href).href;
    const field = h("input", { class: "side-field", readonly: true, value: address, "aria-label": t("Link to {title}", share), onfocus: () => field.select() });
    const copies = h("button", { class: "icon-button small", type: "button", "aria-label": t("Copy the link"), title: t("Copy") }, icon("copy"), icon("check"));
    copies.addEventListener("click", () => copy(address, copies));
    const revoke = h("button", { class: "text-button danger", type: "button" }, t("Revoke"));
    revoke.addEventListener("click", () =>
      attempt(async () => {
        await call("DELETE", `/shares/${share.share_id}`);
        row.remove();
        count();
        (list.querySelector("button") ?? done).focus();
      }),
    );
    const made = new Date(share.created).toLocaleDateString(document.documentElement.lang, { dateStyle: "medium" });
    const row = h("li", { class: "share" }, h("p", { class: "share-title" }, h("a", { href: address, target: "_blank", dir: "auto" }, share.title || t("Untitled")), ` · ${made}`), h("div", { class: "dialog-row" }, field, copies, revoke));
    return row;
  };
  const share = () => call("POST", `/conversations/${conversation.conversation_id}/shares`, { leaf: options.leaf?.(conversation.conversation_id) ?? "" });
  make.addEventListener("click", () =>
    attempt(async () => {
      const row = item(await (conversation.share ?? share)());
      row.classList.add("new");
      list.prepend(row);
      count();
      row.querySelector("input").focus();
    }),
  );
  document.body.append(dialog);
  dialog.showModal();
  await attempt(async () => {
    const { shares } = await call("GET", "/shares");
    list.append(...shares.map(item));
    count();
  });
}
