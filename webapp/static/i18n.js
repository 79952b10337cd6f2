/** Every sentence that the page says, in the language of the person who reads it. English is what stands in the code. */

const messages = {};
const plural = new Intl.PluralRules(document.documentElement.lang || "en");

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
  return value.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
