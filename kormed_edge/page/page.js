// The clinician's page: one question at a time, its answer as it is written.

import { AskError, ask, getHealth, getStatus } from "./ask.js";
import { enterKey, getKey } from "./dialogs.js";
import { makeButton } from "./elements.js";
import { Feedback, isKept } from "./feedback.js";
import { splitOptions } from "./options.js";
import { Turn } from "./turn.js";
import { WORDS, announce, both, errorWords, put } from "./words.js";

const WATCH_MS = 2000;
/** When the queue is first looked at, and how often: each look counts towards --rate. */
const FIRST_LOOK_MS = 1500;
const LOOK_MS = 5000;

const $ = (id) => document.getElementById(id);
let asking = null;
let count = 0;

/** Resolves after a time; rejects when the signal is aborted. */
const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => reject(new DOMException("stopped", "AbortError"));
    if (signal?.aborted) return stop();
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); stop(); }, { once: true });
  });

// Language

const speak = (language) => {
  document.documentElement.lang = language;
  $(`language-${language}`).checked = true;
};
for (const choice of document.querySelectorAll("input[name=language]")) {
  choice.addEventListener("change", () => {
    speak(choice.value);
    location.replace(`#${choice.value}`);
  });
}
speak(location.hash === "#en" ? "en" : "ko");

// Whether the service is there

let watching = false;
const watch = async () => {
  if (watching) return;
  watching = true;
  let health;
  for (; (health = await getHealth()).status !== "ok"; await pause(WATCH_MS)) {
    const name = health.status === "loading" ? "loading" : "offline";
    if ($("state").className === name) continue;
    $("state").className = name;
    $("state").hidden = false;
    put($("state"), WORDS[name]);
  }
  watching = false;
  $("grounds").hidden = !health.guidelines;
  if (!$("state").hidden) announce(WORDS.ready);
  $("state").className = "";
  $("state").hidden = true;
};

// One question

const isNearEnd = () => $("talk").scrollHeight - $("talk").scrollTop - $("talk").clientHeight < 80;
const followed = (change) => {
  const follow = isNearEnd();
  change();
  if (follow) $("talk").scrollTop = $("talk").scrollHeight;
};

const RETRIED = { queue_full: "busy", rate_limit_exceeded: "rate", loading: "later", too_many_connections: "busy" };

const countDown = async (turn, words, seconds, signal) => {
  const cancel = makeButton(WORDS.cancel, () => asking?.abort());
  announce(words(seconds));
  for (let left = seconds; left > 0; left -= 1) {
    // The button stays the same element, so that it keeps the focus.
    if (left === seconds) followed(() => turn.say(words(left), cancel));
    else both(words(left)).forEach((span, i) => { turn.status.children[i].textContent = span.textContent; });
    await pause(1000, signal);
  }
};

/** Say how many wait, until the answer begins. */
const lookAtQueue = async (turn, signal) => {
  try {
    await pause(FIRST_LOOK_MS, signal);
    for (;;) {
      const { waiting } = await getStatus(getKey(), signal);
      if (!signal.aborted) turn.say(waiting ? WORDS.queued(waiting) : WORDS.reading);
      await pause(LOOK_MS, signal);
    }
  } catch {
    // The answer has begun, or it will tell itself what is wrong.
  }
};

const attempt = async (turn, signal) => {
  const begun = new AbortController();
  turn.reset();
  followed(() => turn.say(WORDS.reading));
  lookAtQueue(turn, AbortSignal.any([signal, begun.signal]));
  let first = true;
  const onEvent = (event) => followed(() => {
    begun.abort();
    if (event.replaced) { turn.say(WORDS.rewriting); announce(WORDS.rewriting); }
    else if (first) turn.say(WORDS.writing);
    first = false;
    turn.add(event);
  });
  try {
    return await ask(turn.asks, { key: getKey(), signal, onEvent });
  } finally {
    begun.abort();
  }
};

/** What to do about an attempt that failed: true to try again. */
const mayTryAgain = async (error, turn, signal) => {
  if (signal.aborted || !(error instanceof AskError)) throw error;
  if (error.status === 401) return enterKey(getKey() !== null);
  const words = WORDS[RETRIED[error.code]];
  if (!words) return false;
  await countDown(turn, words, error.retryAfter || 5, signal);
  return true;
};

const answer = async (turn, signal) => {
  for (;;) {
    try {
      return await attempt(turn, signal);
    } catch (error) {
      if (!(await mayTryAgain(error, turn, signal))) throw error;
    }
  }
};

const offerFeedback = async (turn) => {
  const id = turn.requestId; // of an answer that was stopped too, but of none that never began
  if (!id || turn.form || !(await isKept())) return;
  turn.form = new Feedback(turn.n, id).form;
  followed(() => turn.actions.after(turn.form));
};

const addActions = (turn) => {
  if (turn.text.data) turn.actions.append(makeButton(WORDS.copy, (button) => copy(turn, button)));
  if (!turn.whole) turn.actions.append(makeButton(WORDS.again, () => { if (!asking) run(turn); }));
};

const end = (turn, error, signal) => {
  if (!error) return turn.whole.warnings.length ? WORDS.uncertain : WORDS.done;
  if (signal.aborted) { turn.stop(); return WORDS.stopped; }
  if (error.status === 0) watch();
  turn.fail(errorWords(error));
  return errorWords(error);
};

const run = async (turn) => {
  const controller = new AbortController();
  asking = controller;
  document.body.classList.add("asking");
  let error = null;
  try {
    const whole = await answer(turn, controller.signal);
    followed(() => turn.finish(whole));
  } catch (caught) {
    error = caught;
  }
  if (asking === controller) {
    asking = null;
    document.body.classList.remove("asking");
    followed(() => { announce(end(turn, error, controller.signal)); addActions(turn); });
    offerFeedback(turn);
  }
};

const copy = async (turn, button) => {
  let words = WORDS.copied;
  try {
    await navigator.clipboard.writeText(turn.copied);
  } catch {
    // Without TLS a browser has no clipboard for a page that another machine serves.
    const area = document.createElement("textarea");
    area.value = turn.copied;
    document.body.append(area);
    area.select();
    if (!document.execCommand("copy")) words = WORDS.copyFailed;
    area.remove();
    button.focus();
  }
  put(button, words);
  announce(words);
  setTimeout(() => put(button, WORDS.copy), 2000);
};

// The form

const recognize = () => {
  const { options } = splitOptions($("question").value);
  $("recognized").hidden = !options.length;
  if (options.length) put($("recognized-count"), WORDS.recognized(options.length));
  $("recognized-options").replaceChildren(...options.map((option) => {
    const item = document.createElement("li");
    item.textContent = option;
    return item;
  }));
};

const send = () => {
  const question = $("question").value;
  if (!question.trim() || asking) return;
  const turn = new Turn((count += 1), question);
  if (!$("grounds").hidden) turn.guidelines = $("guidelines").checked;
  document.body.classList.add("talking");
  $("clear").disabled = false;
  $("turns").append(turn.article);
  $("question").value = "";
  recognize();
  run(turn);
  $("talk").scrollTop = $("talk").scrollHeight;
};

$("question").addEventListener("input", recognize);
$("question").addEventListener("keydown", (event) => {
  // An Enter that ends a syllable of a Korean input method is none.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("go").addEventListener("click", (event) => {
  if (!asking) return;
  event.preventDefault();
  if (event.detail < 2) asking.abort(); // the second click of a double one is not meant to stop
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) asking?.abort();
});
$("clear").addEventListener("click", () => {
  const controller = asking;
  asking = null;
  controller?.abort();
  document.body.classList.remove("asking", "talking");
  $("turns").replaceChildren();
  $("clear").disabled = true;
  announce(WORDS.cleared);
  $("question").focus();
});

recognize();
watch();
