/** Small helpers for building and placing elements. Text goes in as text: nothing here parses HTML. */

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. `attributes` are set as attributes, except `on…` (listeners) and true/false/null (present or not);
 * children that are null or false are left out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** An icon of the page's sprite; decoration, so hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** When what the page shows now has been painted. */
export function afterPaint() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

/** Set text only where it differs, so that live regions and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Put an open popover under its button, inside the window. On phones the style sheet makes it a sheet instead. */
export function placeUnder(panel, button) {
  if (matchMedia("(max-width: 599px)").matches && !panel.classList.contains("menu")) {
    panel.style.left = panel.style.top = "";
    return;
  }
  const at = button.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - panel.offsetWidth - 8);
  const below = at.bottom + 6;
  const above = at.top - panel.offsetHeight - 6;
  panel.style.left = `${Math.max(8, left)}px`;
  panel.style.top = `${below + panel.offsetHeight > innerHeight - 8 && above > 8 ? above : below}px`;
}

/** Copy text, and show on the button that it worked. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard without https: the old way.
    const area = h("textarea", { class: "sr", readonly: true, "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.classList.add("done");
  clearTimeout(button.doneTimer);
  button.doneTimer = setTimeout(() => button.classList.remove("done"), 1600);
}
