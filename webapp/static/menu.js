/** A small menu under a button, made when it is opened and gone when it is closed. */

import { h, icon, placeUnder } from "./dom.js";

/** Open a menu. `items` are {label, icon, danger, act}; `label` says to screen readers what it is about. */
export function openMenu(button, label, items) {
  const choose = (act) => {
    menu.hidePopover();
    button.focus({ preventScroll: true });
    act();
  };
  const entries = items.map((item) =>
    h("button", { type: "button", role: "menuitem", class: item.danger ? "danger" : null, onclick: () => choose(item.act) }, item.icon && icon(item.icon), item.label),
  );
  const menu = h("div", { class: "panel menu", popover: "auto", role: "menu", "aria-label": label }, ...entries);
  menu.addEventListener("keydown", (event) => {
    const at = entries.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: entries.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      entries.at(to % entries.length).focus();
    } else if (event.key === "Tab") {
      menu.hidePopover();
    }
  });
  menu.addEventListener("toggle", ({ newState }) => {
    button.setAttribute("aria-expanded", String(newState === "open"));
    if (newState === "closed") menu.remove();
  });
  button.closest("aside, main, dialog").append(menu); // beside its button: while a drawer is open, the rest is inert
  menu.showPopover({ source: button });
  placeUnder(menu, button);
  entries[0]?.focus();
}
