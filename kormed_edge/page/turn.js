// One question and its answer on the page. Texts of people and models are only ever text nodes.

import { make } from "./elements.js";
import { listPassages, placeOf, withCitations } from "./guidelines.js";
import { splitOptions } from "./options.js";
import { WORDS, both, percent, withoutHead } from "./words.js";

export class Turn {
  constructor(n, question) {
    this.n = n;
    this.question = question;
    this.whole = this.requestId = null;
    this.passages = [];
    this.guidelines = undefined; // left to the service
    this.form = null;
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

  /** What the service is asked. */
  get asks() {
    return { question: this.question, guidelines: this.guidelines };
  }

  /** A line of what goes on, with buttons such as "cancel". */
  say(words, ...buttons) {
    this.status.className = "status under-way";
    this.status.replaceChildren(...both(words), ...buttons);
  }

  /** Begin anew, after an attempt that failed. */
  reset() {
    this.text.data = "";
    this.answer.replaceChildren(this.text);
    this.passages = [];
    this.requestId = null;
    this.form?.remove();
    this.form = null;
    this.result.replaceChildren();
    this.actions.replaceChildren();
  }

  /** `replaced` takes back what was said so far; the first event has what is known before. */
  add({ delta, guidance, passages, request_id: id, replaced }) {
    if (guidance) this.#guide(guidance);
    if (passages) this.passages = passages;
    if (id) this.requestId = id;
    this.text.data = replaced ? delta : this.text.data + delta;
  }

  #guide(guidance) {
    const box = make("div", "guidance", make("strong", "", ...both(WORDS.guidance)), make("p", "", ...both(guidance)));
    box.setAttribute("role", "alert");
    this.guidance.replaceChildren(box);
  }

  finish(whole) {
    this.whole = whole;
    this.text.data = whole.answer;
    const { option, option_probabilities: shares, warnings, guidelines_note: note } = whole;
    if (shares?.length === this.rows.length) this.rows.forEach((row, i) => this.#weigh(row, shares[i]));
    const chosen = this.rows[option - 1];
    if (chosen) {
      chosen.classList.add("chosen");
      chosen.append(make("span", "mark", "✓ ", ...both(WORDS.chosen)));
      this.result.append(make("p", "choice", ...both(WORDS.choice(`${option}) ${this.options[option - 1]}`))));
    }
    if (whole.confidence !== null) this.result.append(make("p", "confidence", ...both(WORDS.confidence(whole))));
    if (warnings.length) this.result.append(this.#warn(warnings));
    if (whole.regenerated) this.result.append(make("p", "soft", ...both(WORDS.regenerated)));
    if (note) this.result.append(make("p", "note", ...both(note)));
    this.#end();
  }

  #weigh(row, share) {
    // Not <meter>: browsers draw what is inside of one in ways that no style sheet can even out.
    const bar = make("progress");
    Object.assign(bar, { max: 1, value: share });
    bar.setAttribute("aria-labelledby", row.firstChild.id);
    row.append(bar, make("span", "share", percent(share)));
  }

  #warn(warnings) {
    const items = warnings.map((warning) => make("li", "", ...both(withoutHead(warning))));
    return make("div", "warnings", make("strong", "", "⚠ ", ...both(WORDS.uncertain)), make("ul", "", ...items));
  }

  /** Nothing more comes; `words` say why, if not because the answer is whole. */
  #end(words = null, className = "") {
    this.status.className = `status ${className}`;
    this.status.replaceChildren(...(words ? both(words) : []));
    if (!this.passages.length) return;
    this.answer.replaceChildren(...withCitations(this.text.data, this.passages));
    this.result.append(listPassages(this.n, this.passages, this.whole?.cited ?? []));
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
    const { confidence, warnings, model, sha256, adapter_sha256: adapter, notice, guidelines_note: note } = this.whole;
    if (confidence !== null) lines.push(WORDS.confidence(this.whole)[lang]);
    if (warnings.length) lines.push(`⚠ ${WORDS.uncertain[lang]}`);
    for (const warning of warnings) lines.push(`- ${withoutHead(warning)[lang]}`);
    for (const passage of this.passages) lines.push("", `[${passage.number}] ${placeOf(passage)[lang]}`, passage.text);
    if (note) lines.push("", note[lang]);
    lines.push("", notice, `${model} · SHA-256 ${sha256}`);
    if (adapter) lines.push(`${WORDS.adapter[lang]} · SHA-256 ${adapter}`);
    return lines.join("\n");
  }
}
