// Runs before the first paint, as a classic script: the chosen theme and the sidebar's state, so that nothing flashes.
"use strict";
(() => {
  const root = document.documentElement;
  const more = matchMedia("(prefers-contrast: more)");
  const recall = (key) => {
    try {
      return JSON.parse(localStorage.getItem(key) ?? "null");
    } catch {
      return null; // storage is forbidden or holds something else: the system's theme and an open sidebar
    }
  };
  const dress = () => {
    const theme = recall("theme");
    const plain = theme === "light" || theme === "dark";
    if (plain) root.dataset.theme = theme;
    else delete root.dataset.theme;
    root.toggleAttribute("data-contrast", theme === "contrast" || (more.matches && !plain));
  };
  dress();
  if (recall("sidebar") === "hidden") root.dataset.sidebar = "hidden";
  more.addEventListener("change", dress);
  addEventListener("theme", dress); // it was chosen in this tab
  addEventListener("storage", ({ key }) => key === "theme" && dress()); // or in another one
})();
