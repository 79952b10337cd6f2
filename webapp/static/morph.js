/**
 * Makes an element like another one and touches only what differs, so that what has focus, is open, chosen or scrolled stays
 * so. Children with an id or `data-name` are found again wherever they went. What is in `data-drawn` belongs to a script.
 */

/** Make `old` like `fresh`, whose nodes may move into it. */
export function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  dress(old, fresh);
  if (!old.hasAttribute("data-drawn")) fill(old, fresh);
}

function dress(old, fresh) {
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
}

function fill(old, fresh) {
  const known = new Map([...old.children].filter(key).map((child) => [key(child), child]));
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const found = key(wanted) ? known.get(key(wanted)) : place;
    if (!found || !alike(found, wanted)) {
      old.insertBefore(wanted, place);
      continue;
    }
    if (found === place) place = place.nextSibling;
    else move(old, found, place);
    if (found.nodeType === Node.ELEMENT_NODE) morph(found, wanted);
    else if (found.data !== wanted.data) found.data = wanted.data;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function key(node) {
  return node.id || node.dataset?.name;
}

function alike(one, other) {
  return one.nodeName === other.nodeName && key(one) === key(other);
}

/** Browsers without `moveBefore` take the focus from what moves. */
function move(parent, child, place) {
  if (parent.moveBefore) return parent.moveBefore(child, place);
  const focused = child.contains(document.activeElement) ? document.activeElement : null;
  parent.insertBefore(child, place);
  focused?.focus({ preventScroll: true });
}
