"use strict";
(() => {
  const root = document.documentElement;
  const show = () => {
    root.lang = document.querySelector("input[name=language]:checked").value;
  };
  if (location.hash === "#en") document.getElementById("language-en").checked = true;
  for (const choice of document.querySelectorAll("input[name=language]")) {
    choice.addEventListener("change", show);
  }
  show();
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const part of unfolded) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of unfolded) part.open = false;
  });
})();
