/** The tags of one conversation: those that there are, to be switched on and off, and a field for a new one. */

import { call } from "./api.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";

const LONGEST = 40;

/** A dialog; every change is kept at once. */
export function openTags(sidebar, options, id) {
  let mine = [...(sidebar.find(id)?.tags ?? [])];
  const chips = h("div", { class: "tags", role: "group", "aria-label": t("Tags") });
  const input = h("input", { class: "side-field", "aria-label": t("New tag"), placeholder: t("New tag"), maxlength: LONGEST, enterkeyhint: "done", dir: "auto" });
  const problem = h("p", { class: "dialog-problem", role: "alert" });

  const save = async (tags) => {
    const before = mine;
    mine = tags;
    sidebar.tags = [...new Set([...sidebar.tags, ...tags])];
    sidebar.alter(id, { tags });
    draw();
    try {
      await call("PATCH", `/conversations/${id}`, { tags });
      problem.textContent = "";
      sidebar.refresh();
    } catch (error) {
      mine = before;
      sidebar.alter(id, { tags: mine });
      problem.textContent = error.message;
      draw();
    }
  };
  const toggle = (name) => save(mine.includes(name) ? mine.filter((tag) => tag !== name) : [...mine, name]);
  const draw = () => {
    const at = [...chips.children].indexOf(document.activeElement);
    const names = [...new Set([...mine, ...sidebar.tags])];
    const chip = (name) => h("button", { class: "tag", type: "button", dir: "auto", "aria-pressed": String(mine.includes(name)), onclick: () => toggle(name) }, name);
    const shown = [...chips.children].map((child) => child.textContent);
    if (names.some((name) => !shown.includes(name))) chips.replaceChildren(...names.map(chip));
    for (const child of chips.children) child.setAttribute("aria-pressed", String(mine.includes(child.textContent)));
    chips.children[at]?.focus();
  };
  const form = h("form", { class: "dialog-row" }, input, h("button", { class: "button", type: "submit" }, t("Add")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = input.value.trim().replace(/^#+/, "").replace(/\s+/g, " ");
    if (name && !mine.includes(name)) save([...mine, name]);
    input.value = "";
  });
  const done = h("button", { class: "button primary", type: "button", onclick: () => dialog.close() }, t("Done"));
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "tags-title" }, h("h2", { id: "tags-title" }, t("Tags")), chips, form, problem, h("div", { class: "panel-foot" }, done));
  dialog.addEventListener("close", () => dialog.remove());
  draw();
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
}
