// Inside a sandbox: what it is to show comes as a message from the page around it; the size or a reason goes back.
"use strict";

/** Show every message of the page by `draw(message)`, which gives {width, height} in pixels or throws. */
globalThis.serve = (draw) =>
  addEventListener("message", async ({ source, data }) => {
    if (source !== parent) return;
    try {
      parent.postMessage(await draw(data), "*"); // this place has no origin, so it can name none
    } catch (error) {
      parent.postMessage({ error: String(error?.message ?? error) }, "*");
    }
  });
