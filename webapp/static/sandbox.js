/**
 * A frame without any rights, for a diagram or a picture: see webapp/sandbox.py.
 *
 * It has no origin, so messages are told apart by their window; of what it says only a size and a sentence are taken.
 */

import { h } from "./dom.js";

const PATIENCE_MS = 20_000; // for a library of a megabyte, or a slow picture
const TALLEST = 4; // times its width

const night = matchMedia("(prefers-color-scheme: dark)");

/**
 * Put a frame of this `kind` before `place`, and show `message` in it.
 *
 * @returns {Promise<HTMLIFrameElement>} the frame in its size; rejects with the reason why there is nothing to see.
 */
export async function sandboxed(kind, message, title, place) {
  const frame = h("iframe", { class: `sandbox ${kind}`, src: `/sandbox/${kind}`, sandbox: "allow-scripts", referrerpolicy: "no-referrer", title });
  frame.classList.add("waiting"); // it takes no room until its size is known
  const send = () => frame.contentWindow?.postMessage({ ...message, dark: isDark() }, "*");
  const sized = new Promise((resolve, reject) => {
    const hear = ({ source, data }) => {
      if (!frame.isConnected) return removeEventListener("message", hear);
      if (source !== frame.contentWindow) return;
      const { width, height, error } = data ?? {};
      if (!(width > 0 && height > 0)) return reject(new Error(String(error ?? "").slice(0, 300)));
      frame.style.maxWidth = `${Math.ceil(width)}px`;
      frame.style.aspectRatio = `${width} / ${Math.min(height, TALLEST * width)}`;
      frame.classList.remove("waiting");
      resolve(frame);
    };
    addEventListener("message", hear);
    setTimeout(() => reject(new Error("")), PATIENCE_MS);
  });
  frame.addEventListener("load", send);
  follow(frame, send);
  place.before(frame);
  try {
    return await sized;
  } catch (error) {
    frame.remove();
    throw error;
  }
}

/** Draw again when the theme changes, as long as the frame is there. */
function follow(frame, send) {
  const redraw = () => {
    if (frame.isConnected) return send();
    observer.disconnect();
    night.removeEventListener("change", redraw);
  };
  const observer = new MutationObserver(redraw);
  observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  night.addEventListener("change", redraw);
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme === "dark" || (theme !== "light" && night.matches);
}
