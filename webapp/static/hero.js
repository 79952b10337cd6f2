/** The greeting of an empty chat: who is asked, and what one could ask. */

import { $, setText } from "./dom.js";
import { usable } from "./picker.js";
import { greeting } from "./sayings.js";

const LONG_TITLE = 28; // characters; longer ones are set smaller

/** Greet with what is known of the model; `ask(text)` is called with a question to start with. */
export class Hero {
  constructor(ask) {
    $("starters").addEventListener("click", (event) => {
      const starter = event.target.closest("button");
      if (starter) ask(starter.textContent);
    });
  }

  show(model, known) {
    const { title, text, progress } = greeting(model, known);
    setText($("hero-title"), title);
    $("hero-title").classList.toggle("long", title.length > LONG_TITLE);
    if ($("hero-text").textContent !== text.map((node) => node.textContent ?? node).join("")) $("hero-text").replaceChildren(...text);
    $("hero-progress").hidden = progress === undefined;
    $("hero-progress").value = progress ?? 0;
    $("starters").hidden = !usable(model);
  }
}
