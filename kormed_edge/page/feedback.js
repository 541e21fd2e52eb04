// What a clinician says of an answer: 맞음, 틀림 or 위험, with a comment.

import { getStatus, sendFeedback } from "./ask.js";
import { enterKey, getKey } from "./dialogs.js";
import { make, makeButton } from "./elements.js";
import { WORDS, announce, both, feedbackErrorWords, put } from "./words.js";

const MAX_COMMENT = 4000;
let kept = null;

/** Whether the service keeps feedback, asked once; false while that cannot be known. */
export const isKept = async () => {
  try {
    kept ??= (await getStatus(getKey())).feedback === true;
  } catch {
    return false; // the next answer asks again
  }
  return kept;
};

const send = async (given) => {
  for (;;) {
    try {
      return await sendFeedback(given, getKey());
    } catch (error) {
      if (error.status !== 401 || !(await enterKey(getKey() !== null))) throw error;
    }
  }
};

/** A form for one answer. What was sent can be sent anew: of each judge the last word counts. */
export class Feedback {
  #sending = false;

  constructor(n, requestId) {
    this.requestId = requestId;
    this.state = make("p", "feedback-state");
    this.more = this.#comment(`turn-${n}-comment`);
    this.choices = this.#verdicts(`turn-${n}-verdict`);
    this.form = make("form", "feedback", this.choices, this.more, this.state);
    this.form.autocomplete = "off";
    this.form.addEventListener("change", () => { this.more.hidden = false; });
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
  }

  #verdicts(name) {
    const box = make("fieldset", "verdicts", make("legend", "", ...both(WORDS.rateAnswer)));
    for (const [value, words] of Object.entries(WORDS.verdicts)) {
      const radio = make("input");
      Object.assign(radio, { type: "radio", name, value, id: `${name}-${value}`, required: true });
      const label = make("label", value, ...both(words));
      label.htmlFor = radio.id;
      box.append(radio, label);
    }
    return box;
  }

  #comment(id) {
    const label = make("label", "", ...both(WORDS.comment));
    const hint = make("p", "soft", ...both(WORDS.commentHint));
    this.comment = make("textarea");
    Object.assign(this.comment, { id, rows: 2, maxLength: MAX_COMMENT });
    label.htmlFor = id;
    hint.id = `${id}-hint`;
    this.comment.setAttribute("aria-describedby", hint.id);
    this.button = make("button", "main", ...both(WORDS.send));
    const more = make("div", "more", label, this.comment, hint, this.button);
    more.hidden = true;
    return more;
  }

  get #verdict() {
    return this.form.querySelector(":checked").value;
  }

  async #submit() {
    if (this.#sending) return;
    this.#sending = true;
    const verdict = this.#verdict;
    this.#say(WORDS.sending, "under-way");
    try {
      await send({ request_id: this.requestId, verdict, comment: this.comment.value.trim() });
      this.#sent(verdict);
    } catch (error) {
      this.#say(feedbackErrorWords(error), "error");
    }
    this.#sending = false;
  }

  #say(words, className) {
    this.state.className = `feedback-state ${className}`;
    put(this.state, words);
    announce(words);
  }

  #sent(verdict) {
    const focused = this.form.contains(document.activeElement);
    this.#say(WORDS.sent(WORDS.verdicts[verdict]), "sent");
    const change = makeButton(WORDS.change, () => this.#open());
    this.state.append(change);
    this.choices.hidden = this.more.hidden = true;
    if (focused) change.focus();
  }

  #open() {
    this.choices.hidden = this.more.hidden = false;
    this.state.replaceChildren();
    this.form.querySelector(":checked").focus();
  }
}
