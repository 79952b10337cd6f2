// Draws a Mermaid text {text, dark}.
"use strict";

let drawn = 0;

serve(async ({ text, dark }) => {
  document.documentElement.style.colorScheme = dark ? "dark" : "light"; // as around it, else the frame is opaque
  mermaid.initialize({ startOnLoad: false, securityLevel: "strict", theme: dark ? "dark" : "default", logLevel: "fatal", suppressErrorRendering: true });
  const { svg } = await mermaid.render(`diagram-${++drawn}`, text);
  document.body.innerHTML = svg;
  const { width, height } = document.querySelector("svg").viewBox.baseVal;
  return { width, height };
});
