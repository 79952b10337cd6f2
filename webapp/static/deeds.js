/** What the buttons of one message do, in the column that shows it: a function for each. */

import { call } from "./api.js";
import { t } from "./i18n.js";
import { usable } from "./picker.js";

const MOST = 200; // messages that are read when another version is looked at, which may be far up
const MENU_MODELS = 8;

export const deeds = { again, continue: goOn, edit, turn, rate, more, remove };

function again(thread, node) {
  thread.again(node);
}

function goOn(thread, node) {
  thread.goOn(node);
}

/** Ask anew; gives false if that cannot be done now. */
function edit(thread, node, text) {
  const model = thread.host.modelOf(thread);
  if (!usable(model)) {
    thread.host.notice(thread.host.obstacle(model));
    return false;
  }
  thread.ask({ text, files: node.content.files }, { at: thread.nodes.indexOf(node) });
  return true;
}

/** Show the version before or after, with what is below it. */
async function turn(thread, node, step) {
  const at = node.versions.indexOf(node.id) + step;
  const id = node.versions[at];
  const above = thread.nodes[thread.nodes.indexOf(node) - 1]?.view.element ?? thread.scroller;
  await thread.remember(id); // first: who reads the conversation now shall not come back to where it was
  try {
    if (!(await thread.open({ leaf: id, count: MOST, around: above }))) return;
  } catch (error) {
    return thread.host.notice(error.message);
  }
  const shown = thread.nodes.find((candidate) => candidate.id === id)?.view ?? thread.run?.view;
  shown?.focusVersions(step);
  thread.say(t("Version {at} of {count}", { at: at + 1, count: node.versions.length }));
  thread.host.moved();
}

/** Rate it, or take the same rating back; then there is a place for a note. */
async function rate(thread, node, { rating, button }) {
  const before = node.rating;
  const save = async (value, note) => {
    node.rating = node.view.rating = value;
    node.note = note;
    try {
      await call("PUT", `${addressOf(thread, node)}/rating`, { rating: value || null, note });
    } catch (error) {
      node.rating = node.view.rating = before;
      thread.host.notice(error.message);
    }
  };
  save(before === rating ? "" : rating, "");
  if (!node.rating) return;
  const { askNote } = await import("./rating.js");
  askNote(button, node.note, (note) => save(node.rating, note));
}

async function more(thread, { view }, button) {
  const { openMenu } = await import("./menu.js");
  const others = thread.host.models.filter((model) => usable(model) && model.name !== view.model).slice(0, MENU_MODELS);
  // while the menu is open, the path may be read anew: then the view has another node
  openMenu(button, t("More about this answer"), [
    ...others.map((model) => ({ label: t("Write again with {model}", { model: model.name }), icon: "again", act: () => thread.again(view.node, model) })),
    { label: t("Delete this answer"), icon: "trash", danger: true, act: () => remove(thread, view.node) },
  ]);
}

async function remove(thread, node) {
  const { confirm } = await import("./confirm.js");
  const title = node.role === "user" ? t("Delete this message?") : t("Delete this answer?");
  if (!(await confirm(title, t("It is removed for good, with everything that was said below it."), t("Delete")))) return;
  if (thread.host.temporary) return thread.drop(node);
  try {
    const { leaf } = await call("DELETE", addressOf(thread, node));
    await thread.open({ leaf, count: MOST });
    thread.host.moved();
  } catch (error) {
    thread.host.notice(error.message);
  }
}

function addressOf({ host }, { id }) {
  return `/conversations/${host.conversation}/messages/${id}`;
}
