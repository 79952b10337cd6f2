// Runs before the first paint, as a classic script: the chosen theme and the sidebar's state, so that nothing flashes.
"use strict";
(() => {
  try {
    const root = document.documentElement;
    const theme = JSON.parse(localStorage.getItem("theme") ?? '""');
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    if (localStorage.getItem("sidebar") === '"hidden"') root.dataset.sidebar = "hidden";
  } catch {
    // Storage is forbidden or holds something else: the system's theme and an open sidebar.
  }
})();
