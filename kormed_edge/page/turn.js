// One question and its answer on the page. Texts of people and models are only ever text nodes.

import { splitOptions } from "./options.js";
import { WORDS, both, percent } from "./words.js";

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

export class Turn {
  constructor(n, question) {
    this.n = n;
    this.question = question;
    this.whole = null;
    this.options = splitOptions(question).options;
    this.text = document.createTextNode("");
    this.head = make("h3", "unseen", ...both(WORDS.question(n)));
    this.head.id = `turn-${n}`;
    this.article = make("article", "turn", this.head, this.#asked(n));
    this.article.setAttribute("aria-labelledby", this.head.id);
    this.guidance = make("div");
    this.answer = make("p", "text", this.text);
    this.status = make("p", "status");
    this.result = make("div", "result");
    this.actions = make("div", "actions");
    const title = make("h4", "unseen", ...both(WORDS.answer));
    const body = make("div", "answer", title, this.answer, this.status, this.result, this.actions);
    this.article.append(this.guidance, body);
  }

  #asked(n) {
    const { stem, options } = splitOptions(this.question);
    const asked = make("div", "asked", make("p", "text", stem));
    this.rows = options.map((option, i) => {
      const text = make("span", "text", `${i + 1}) ${option}`);
      text.id = `turn-${n}-option-${i + 1}`;
      return make("li", "", text);
    });
    if (options.length) asked.append(make("ul", "options", ...this.rows));
    return asked;
  }

  /** A line of what goes on, with buttons such as "cancel". */
  say(words, ...buttons) {
    this.status.className = "status under-way";
    this.status.replaceChildren(...both(words), ...buttons);
  }

  /** Begin anew, after an attempt that failed. */
  reset() {
    this.text.data = "";
    this.result.replaceChildren();
    this.actions.replaceChildren();
  }

  add({ delta, guidance }) {
    if (guidance) this.#guide(guidance);
    this.text.data += delta;
  }

  #guide(guidance) {
    const box = make("div", "guidance", make("strong", "", ...both(WORDS.guidance)), make("p", "", ...both(guidance)));
    box.setAttribute("role", "alert");
    this.guidance.replaceChildren(box);
  }

  finish(whole) {
    this.whole = whole;
    this.text.data = whole.answer;
    this.#end();
    const { option, option_probabilities: shares, confidence, confidence_words: words, warnings } = whole;
    if (shares?.length === this.rows.length) this.rows.forEach((row, i) => this.#weigh(row, shares[i]));
    const chosen = this.rows[option - 1];
    if (chosen) {
      chosen.classList.add("chosen");
      chosen.append(make("span", "mark", "✓ ", ...both(WORDS.chosen)));
      this.result.append(make("p", "choice", ...both(WORDS.choice(`${option}) ${this.options[option - 1]}`))));
    }
    if (confidence !== null) this.result.append(make("p", "confidence", ...both(WORDS.confidence(confidence, words))));
    if (warnings.length) this.result.append(this.#warn(warnings));
  }

  #weigh(row, share) {
    // Not <meter>: browsers draw what is inside of one in ways that no style sheet can even out.
    const bar = make("progress");
    Object.assign(bar, { max: 1, value: share });
    bar.setAttribute("aria-labelledby", row.firstChild.id);
    row.append(bar, make("span", "share", percent(share)));
  }

  #warn(warnings) {
    const items = warnings.map((warning) => make("li", "", ...both(warning)));
    return make("div", "warnings", make("strong", "", "⚠ ", ...both(WORDS.uncertain)), make("ul", "", ...items));
  }

  /** Nothing more comes; `words` say why, if not because the answer is whole. */
  #end(words = null, className = "") {
    this.status.className = `status ${className}`;
    this.status.replaceChildren(...(words ? both(words) : []));
  }

  stop() {
    this.#end(WORDS.stopped, "stopped");
  }

  fail(words) {
    this.#end(words, "error");
  }

  /** What "copy" takes: never an answer without its doubts and its notice. */
  get copied() {
    const lang = document.documentElement.lang;
    const { ko, en } = WORDS.stopped;
    const lines = [this.question, "", this.text.data];
    if (!this.whole) return [...lines, "", lang === "en" ? en : ko].join("\n");
    const { confidence, confidence_words: words, warnings, model, sha256, notice } = this.whole;
    if (confidence !== null) lines.push(WORDS.confidence(confidence, words)[lang]);
    for (const warning of warnings) lines.push(`⚠ ${warning[lang]}`);
    return [...lines, "", notice, `${model} · SHA-256 ${sha256}`].join("\n");
  }
}
