/**
 * What can be set about an answer, and what counts where: what a person chose in this conversation comes before their own
 * defaults for the model, those before the models file's, and those before what is built in.
 *
 * `choices` hold only what a person chose. `valuesOf` makes of them what an ask carries.
 */

import { recall, remember } from "./store.js";

/** As broker.messages.Sampling has them; what has none here is absent unless somebody wants it. */
export const BUILT_IN = {
  temperature: 0.7,
  top_p: 1,
  top_k: 0,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  min_tokens: 0,
  ignore_eos: false,
  stop: [],
  system: "",
};

/** Belong to one conversation, or to a preset, and never to a model. */
const PASSING = ["seed", "structure"];

/** Whether two values of a parameter are the same. */
export function same(one, other) {
  return JSON.stringify(one ?? null) === JSON.stringify(other ?? null);
}

/** What a parameter is where nobody chose: of `card`, a model as the server describes it, or null. */
export function defaultsOf(card) {
  return { ...BUILT_IN, ...card?.defaults, ...ownDefaults(card) };
}

/** What an ask to this model carries: all that was chosen, and of the rest what is not as it is built in. */
export function valuesOf(choices, card) {
  const all = { ...defaultsOf(card), ...choices };
  return Object.fromEntries(Object.entries(all).filter(([name, value]) => name in choices || !same(value, BUILT_IN[name])));
}

/** The choices in `values`: what is as this model has it by itself is none. */
export function choicesIn(values, card) {
  const usual = defaultsOf(card);
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => !same(value, usual[name])));
}

/** This person's own defaults for a model, or undefined. */
export function ownDefaults(card) {
  return card ? recall("defaults", {})[card.name] : undefined;
}

/** From now on a model begins with these values, in this browser; null forgets them. */
export function setOwnDefaults(card, values) {
  const { [card.name]: _, ...others } = recall("defaults", {});
  const kept = values && Object.fromEntries(Object.entries(values).filter(([name]) => !PASSING.includes(name)));
  remember("defaults", kept ? { ...others, [card.name]: kept } : others);
}
