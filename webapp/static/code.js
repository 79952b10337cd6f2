/** Colours for code blocks. The highlighter and each language are loaded when a block first needs them. */

import hljs from "./vendor/highlight/core.min.js";

const LANGUAGES = {
  bash: "bash sh shell zsh console shell-session",
  c: "c h",
  cpp: "cpp c++ cc hpp cxx",
  csharp: "csharp cs c#",
  css: "css",
  diff: "diff patch",
  dockerfile: "dockerfile docker",
  go: "go golang",
  ini: "ini toml",
  java: "java",
  javascript: "javascript js jsx mjs cjs",
  json: "json jsonc json5",
  kotlin: "kotlin kt",
  lua: "lua",
  makefile: "makefile make mk",
  markdown: "markdown md",
  php: "php",
  python: "python py python3 pycon",
  r: "r",
  ruby: "ruby rb",
  rust: "rust rs",
  sql: "sql postgresql sqlite mysql",
  swift: "swift",
  typescript: "typescript ts tsx",
  xml: "xml html xhtml svg vue",
  yaml: "yaml yml",
};
const FILES = new Map(Object.entries(LANGUAGES).flatMap(([file, names]) => names.split(" ").map((name) => [name, file])));
const LONGEST = 60_000; // characters; beyond, colours cost more than they help
const LONGEST_GROWING = 8_000;
const SAFE = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

/**
 * Colour a `<code data-language>`; an unknown language stays as it is. Gives how long it took, in ms.
 *
 * `growing`: more will come, so it has to be coloured again; `data-coloured` is "whole" only when nothing will.
 */
export async function colour(code, growing = false) {
  const language = FILES.get(code.dataset.language.toLowerCase());
  if (!language || code.textContent.length > (growing ? LONGEST_GROWING : LONGEST)) return 0;
  if (!hljs.getLanguage(language)) {
    const { default: grammar } = await import(`./vendor/highlight/languages/${language}.min.js`);
    hljs.registerLanguage(language, grammar);
  }
  const begun = performance.now();
  const { value } = hljs.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(globalThis.DOMPurify.sanitize(value, SAFE));
  code.dataset.coloured = growing ? "" : "whole";
  return performance.now() - begun;
}
