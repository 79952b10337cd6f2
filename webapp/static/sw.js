// The service worker: without a network, a page of the site says so. Only that page and what it is made of are kept;
// no conversation, nothing of the API, no socket. The server puts the line before this that says what STATIC is.
"use strict";

const OFFLINE = "/offline";
const KEPT = [OFFLINE, ...["base.css", "theme.js", "favicon.svg"].map((name) => `${STATIC}/${name}`)];
const PAGE = /^\/([cs]\/[^/]+)?$/;

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(STATIC).then((cache) => cache.addAll(KEPT)));
});

addEventListener("activate", (event) => {
  const forget = async () => {
    for (const name of await caches.keys()) if (name !== STATIC) await caches.delete(name);
    await clients.claim();
  };
  event.waitUntil(forget());
});

addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (origin !== location.origin || event.request.method !== "GET") return;
  if (event.request.mode === "navigate" && PAGE.test(pathname)) {
    event.respondWith(fetch(event.request).catch(() => caches.match(OFFLINE, { ignoreVary: true })));
  } else if (KEPT.includes(pathname) && pathname !== OFFLINE) {
    event.respondWith(caches.match(pathname, { ignoreVary: true }).then((kept) => kept ?? fetch(event.request)));
  }
});
