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
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
