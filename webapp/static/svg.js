/** Drawings: SVG elements, and numbers at which an axis is marked. */

const NAMESPACE = "http://www.w3.org/2000/svg";

/** A new SVG element with these attributes and children; text is a child, too. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Round numbers between `low` and `high`, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) found.push(at * step);
  return found;
}

/** Gives where a value is between `low` and `high`, in percent of a width. */
export function percent(low, high) {
  const size = high - low || 1;
  return (value) => `${((100 * (value - low)) / size).toFixed(2)}%`;
}
