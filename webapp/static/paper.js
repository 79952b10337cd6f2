/** A conversation on a page of its own, shared or to be printed: its Markdown is set, its time written as people do. */

import { $ } from "./dom.js";
import { LiveMarkdown } from "./markdown.js";

for (const element of document.querySelectorAll(".md")) {
  const text = element.textContent;
  element.textContent = "";
  new LiveMarkdown(element).finish(text);
}
const time = $("paper-time");
const at = new Date(Number(time.dataset.ms));
time.dateTime = at.toISOString();
time.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "long", timeStyle: "short" });
const print = $("paper-print");
if (print) {
  print.hidden = false;
  print.addEventListener("click", () => window.print());
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
document.documentElement.dataset.ready = "";
