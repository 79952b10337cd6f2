/** Every sentence that the page says, in the language of the person who reads it. English is what stands in the code. */

const messages = globalThis.catalogue ?? {};
export const language = document.documentElement.lang;
const plural = new Intl.PluralRules(language);

// A new chat has what errors say in their own words only once somebody does something.
if (globalThis.catalogue && !messages["@"]) {
  const more = () => import(`./language/${language}.more.js`).catch(() => {});
  for (const kind of ["pointerdown", "keydown", "click"]) addEventListener(kind, more, { once: true, capture: true });
}

/** `text` in the page's language; `{name}` becomes the value of that name. */
export function t(text, values = {}) {
  return fill(messages[text] ?? text, values);
}

/** One of two texts by a number, which is `{count}` in them. */
export function n(one, many, count, values = {}) {
  return fill(messages[one]?.[plural.select(count)] ?? (plural.select(count) === "one" ? one : many), { count: number(count), ...values });
}

/** A number as it is written in the page's language. */
export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** What the server's error {code, message} says: its sentence with its values, or that of its code with the details as they came. */
export function told({ code, message }) {
  if (messages[message] || !messages[`@${code}`] || code === "internal") return messages[message] ?? message;
  for (const [pattern, text] of Object.entries(messages["@"] ?? {})) {
    const found = new RegExp(`^${pattern}$`, "s").exec(message);
    if (found) return fill(text, found.groups);
  }
  return t("{sentence} ({details})", { sentence: messages[`@${code}`], details: message });
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
