/** A quiet notice at the foot of the window, with at most one thing to do about it; it goes by itself. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

const SHOWN_MS = 10_000;
let region = null;
let timer = 0;

/** Say `text`; `label` names the button that calls `act`. A notice that is pointed at, or has the focus, stays. */
export function toast(text, label, act) {
  region ??= document.body.appendChild(h("div", { class: "toasts", role: "status" }));
  const close = () => notice.remove();
  const button = label && h("button", { class: "text-button", type: "button", onclick: () => close() ?? act() }, label);
  const dismiss = h("button", { class: "text-button toast-close", type: "button", "aria-label": t("Close"), onclick: close }, "×");
  const notice = h("div", { class: "toast" }, h("p", {}, text), button, dismiss);
  const leave = () => {
    clearTimeout(timer);
    timer = setTimeout(() => (notice.matches(":hover, :focus-within") ? leave() : close()), SHOWN_MS);
  };
  region.replaceChildren(notice);
  leave();
}
