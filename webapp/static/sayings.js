/** What the page says about models: who is asked, what is in the way, and what an answer waits for. */

import { h } from "./dom.js";
import { n, number, t } from "./i18n.js";
import { usable } from "./picker.js";

/** The greeting of an empty chat: {title, text: nodes, progress?}. `known`: whether the first list of models has come. */
export function greeting(model, known) {
  if (!known) return { title: "", text: [] };
  if (!model) return { title: t("No model is running"), text: [t("Start one with "), h("code", {}, "fleetchat up"), t(", or a worker: "), h("code", {}, "arq workers.Settings")] };
  const { name, state, description, progress, why } = model;
  if (state === "loading") {
    const wait = t("You can write already: your message waits until the model is ready.");
    return { title: t("{model} is loading", { model: name }), text: [`${description ? `${description} ` : ""}${wait}`], progress: progress || 0 };
  }
  if (state === "failed") return { title: t("{model} could not be loaded", { model: name }), text: [why || t("The worker's log has the cause."), t(" Pick another model above.")] };
  if (state === "gone") {
    return { title: t("{model} has stopped", { model: name }), text: [t("Pick another model above, or start a worker for it: "), h("code", {}, `FLEETCHAT_MODEL=${name} arq workers.Settings`)] };
  }
  return { title: t("Ask {model}", { model: name }), text: [description || ""] };
}

/** Why this model cannot be asked; "" if it can. */
export function obstacle(model, known) {
  if (!known) return t("Still connecting. Your message can be sent in a moment.");
  if (!model) return t("No model is running. Start one with: fleetchat up, or a worker: arq workers.Settings");
  if (model.state === "failed") return t("{model} could not be loaded. Pick another model.", { model: model.name });
  if (model.state === "gone") return t("{model} has stopped. Pick another model, or start a worker for it.", { model: model.name });
  return "";
}

/** What an answer waits for; "" when there is nothing to say. `waiting` is {place, seconds}, or null. */
export function waitSentence(name, model, known, waiting) {
  if (model?.state === "loading") return t("{model} is loading ({progress} %). Your message waits for it.", { model: name, progress: model.progress || 0 });
  if (known && name && !usable(model)) return t("No worker serves {model} right now. It goes on when one starts.", { model: name });
  if (waiting?.place == null) return "";
  const place = waiting.place === 0 ? t("You are next in line") : n("{count} request before yours", "{count} requests before yours", waiting.place);
  return waiting.seconds ? t("{place}, about {time}", { place, time: time(waiting.seconds) }) : place;
}

function time(seconds) {
  return seconds < 90 ? t("{count} s", { count: number(seconds) }) : n("{count} minute", "{count} minutes", Math.round(seconds / 60));
}
