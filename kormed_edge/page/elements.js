// Elements, of which every text is a text node.

import { both } from "./words.js";

export const make = (tag, className = "", ...content) => {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
};

export const makeButton = (words, act, className = "") => {
  const button = make("button", className, ...both(words));
  button.type = "button";
  button.addEventListener("click", () => act(button));
  return button;
};
