// Passages of the hospital's guidelines: their numbers in an answer, the list below it, the dialog.

import { make } from "./elements.js";
import { WORDS, both, put } from "./words.js";

const CITATION = /\[([1-9][0-9]?(?:\s*,\s*[1-9][0-9]?)*)\]/g;
const $ = (id) => document.getElementById(id);

/** Where a passage stands, in words: document, page, heading. */
export const placeOf = ({ document, page, heading }) => {
  const { ko, en } = WORDS.page(page);
  const inWords = (words) => [document, page && words, heading].filter(Boolean).join(" · ");
  return { ko: inWords(ko), en: inWords(en) };
};

const open = (passage) => {
  put($("passage-title"), WORDS.passage(passage.number));
  put($("passage-place"), placeOf(passage));
  $("passage-text").textContent = passage.text;
  $("passage").showModal();
  $("passage-text").scrollTop = 0;
};
$("passage-close").addEventListener("click", () => $("passage").close());

const opener = (passage, className, ...content) => {
  const button = make("button", className, ...content);
  button.type = "button";
  button.setAttribute("aria-haspopup", "dialog");
  button.addEventListener("click", () => open(passage));
  return button;
};

const citation = (number, passages) => {
  const passage = passages[number - 1];
  if (!passage) return `[${number}]`; // invented
  const what = make("span", "unseen", ...both(WORDS.openPassage));
  return opener(passage, "citation", `[${number}]`, what);
};

/** The nodes of an answer, in which each number of a passage is a button that opens it. */
export const withCitations = (text, passages) => {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(CITATION)) {
    const numbers = match[1].split(",").map(Number);
    nodes.push(text.slice(end, match.index), ...numbers.map((number) => citation(number, passages)));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
};

/** The passages that an answer was given, those it cites marked as such. */
export const listPassages = (n, passages, cited) => {
  const title = make("h4", "", ...both(WORDS.passages));
  title.id = `turn-${n}-passages`;
  const list = make("ul", "", ...passages.map((passage) => {
    const button = opener(passage, "source", `[${passage.number}] `, ...both(placeOf(passage)));
    return make("li", "", button, ...(cited.includes(passage.number) ? [make("span", "cited", " ✓ ", ...both(WORDS.cited))] : []));
  }));
  list.setAttribute("aria-labelledby", title.id);
  return make("div", "sources", title, list);
};
