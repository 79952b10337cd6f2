// Loads a picture {address, label, dark}.
"use strict";

serve(async ({ address, label, dark }) => {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  const there = document.querySelector("img");
  if (!there) {
    const picture = new Image();
    picture.alt = label;
    picture.referrerPolicy = "no-referrer";
    picture.src = address;
    await picture.decode();
    document.body.replaceChildren(picture);
  }
  const { naturalWidth: width, naturalHeight: height } = document.querySelector("img");
  return { width: width || 300, height: height || 150 }; // an SVG need not say
});
