// Two dialogs: the API key, and what there is to know of the model.

import { getStatus } from "./ask.js";
import { WORDS, errorWords, put } from "./words.js";

const KEY = "kormed.key";
const $ = (id) => document.getElementById(id);

export const getKey = () => sessionStorage.getItem(KEY);
let closeKey = null;

/** True once a key was entered, false when that was cancelled. */
export const enterKey = (wrong) =>
  new Promise((resolve) => {
    closeKey?.(false);
    closeKey = (entered) => { closeKey = null; $("key-value").value = ""; $("key").close(); resolve(entered); };
    $("key").showModal();
    $("key-value").focus();
    put($("key-wrong"), WORDS.wrongKey);
    $("key-wrong").hidden = !wrong;
  });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key-value").value.trim());
  closeKey?.(true);
});
$("key-cancel").addEventListener("click", () => closeKey?.(false));
// The event comes late: by then the dialog may be open again.
$("key").addEventListener("close", () => { if (!$("key").open) closeKey?.(false); });

// About the model

const describe = (status) => {
  for (const name of ["model", "version", "sha256", "adapter_sha256"]) $(`about-${name}`).textContent = status[name];
  for (const row of document.querySelectorAll(".about-adapter")) row.hidden = !status.adapter;
  const words = { true: WORDS.verified, false: WORDS.unverified }[status.verified] ?? WORDS.unknown;
  put($("about-verified"), words);
  put($("about-calibrated"), status.calibrated ? WORDS.calibrated : WORDS.uncalibrated);
  put($("about-guidelines"), status.guidelines ? WORDS.yes : WORDS.no);
  $("about-busy").textContent = `${status.busy} / ${status.slots}`;
  $("about-waiting").textContent = status.waiting;
};

const showAbout = async () => {
  $("about-state").hidden = true;
  $("about").showModal();
  try {
    describe(await getStatus(getKey()));
  } catch (error) {
    $("about-state").hidden = false;
    put($("about-state"), error.code === "loading" ? WORDS.loading : errorWords(error));
  }
};
$("about-open").addEventListener("click", showAbout);
$("about-close").addEventListener("click", () => $("about").close());
$("key-open").addEventListener("click", async () => {
  $("about").close();
  if (await enterKey(false)) showAbout();
});
