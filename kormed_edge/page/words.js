// Every text that the page's scripts show, in Korean and English.

/** Two elements, of which the style sheet shows the one of the page's language. */
export const both = ({ ko, en }) =>
  [["ko", ko], ["en", en]].map(([lang, text]) => {
    const span = document.createElement("span");
    span.className = lang;
    span.lang = lang;
    span.textContent = text;
    return span;
  });

export const put = (element, words) => element.replaceChildren(...both(words));

/** Have a screen reader say it. */
export const announce = (words) => put(document.getElementById("announce"), words);

/** A warning below the heading "uncertain", whose words are not said twice. */
export const withoutHead = ({ ko, en }) => {
  const head = WORDS.uncertain;
  const rest = (text, said) => (text.startsWith(`${said}. `) ? text.slice(said.length + 2) : text);
  return { ko: rest(ko, head.ko), en: rest(en, head.en) };
};

export const percent = (value) => `${Math.round(100 * value)}%`;

export const WORDS = {
  question: (n) => ({ ko: `질문 ${n}`, en: `Question ${n}` }),
  answer: { ko: "답변", en: "Answer" },
  guidance: { ko: "먼저 확인하십시오", en: "Before anything else" },
  uncertain: { ko: "불확실: 전문의 확인 필요", en: "Uncertain: have a specialist confirm it" },
  chosen: { ko: "선택", en: "chosen" },
  choice: (text) => ({ ko: `선택한 보기: ${text}`, en: `Option chosen: ${text}` }),
  confidence: ({ confidence, confidence_words: { ko, en }, calibrated }) => ({
    ko: `확신도 ${ko} (${percent(confidence)})${calibrated ? "" : " · 보정되지 않은 값"}`,
    en: `Confidence ${en} (${percent(confidence)})${calibrated ? "" : " · not calibrated"}`,
  }),
  passages: { ko: "지침 구절", en: "Passages of the guidelines" },
  passage: (number) => ({ ko: `지침 구절 [${number}]`, en: `Passage [${number}]` }),
  page: (page) => ({ ko: `${page}쪽`, en: `page ${page}` }),
  openPassage: { ko: " 구절 열기", en: " open passage" },
  cited: { ko: "인용됨", en: "cited" },
  rewriting: { ko: "다른 글자가 섞여 답변을 다시 씁니다…", en: "Other scripts slipped in. Writing the answer anew…" },
  regenerated: {
    ko: "다른 글자가 섞여 답변을 다시 썼습니다.",
    en: "Other scripts had slipped in: the answer was written anew.",
  },
  recognized: (n) => ({ ko: `객관식: 보기 ${n}개를 알아보았습니다`, en: `Multiple choice: ${n} options recognized` }),
  reading: { ko: "질문을 읽고 있습니다…", en: "Reading the question…" },
  queued: (n) => ({
    ko: `순서를 기다립니다 · 대기 ${n}건 (이 질문 포함)`,
    en: `Waiting for a turn · ${n} waiting, this question among them`,
  }),
  writing: { ko: "답변을 쓰고 있습니다…", en: "Writing the answer…" },
  done: { ko: "답변이 끝났습니다.", en: "The answer is complete." },
  stopped: { ko: "중지했습니다. 답변이 완전하지 않습니다.", en: "Stopped. The answer is not complete." },
  busy: (n) => ({
    ko: `사용자가 많습니다. ${n}초 뒤에 다시 묻습니다.`,
    en: `Many are asking. Trying again in ${n} s.`,
  }),
  rate: (n) => ({
    ko: `잠시 동안 질문이 많았습니다. ${n}초 뒤에 다시 묻습니다.`,
    en: `Too many questions in a short time. Trying again in ${n} s.`,
  }),
  later: (n) => ({
    ko: `모델을 불러오고 있습니다. ${n}초 뒤에 다시 묻습니다.`,
    en: `The model is loading. Trying again in ${n} s.`,
  }),
  cancel: { ko: "취소", en: "Cancel" },
  copy: { ko: "복사", en: "Copy" },
  copied: { ko: "복사했습니다", en: "Copied" },
  copyFailed: { ko: "복사할 수 없습니다", en: "Cannot copy" },
  rateAnswer: { ko: "이 답변을 평가해 주십시오", en: "Rate this answer" },
  verdicts: {
    correct: { ko: "맞음", en: "Correct" },
    wrong: { ko: "틀림", en: "Wrong" },
    dangerous: { ko: "위험", en: "Dangerous" },
  },
  comment: { ko: "의견 (선택)", en: "Comment (optional)" },
  commentHint: {
    ko: "환자를 알아볼 수 있는 내용은 쓰지 마십시오.",
    en: "Write nothing that a patient could be recognized by.",
  },
  send: { ko: "보내기", en: "Send" },
  sending: { ko: "보내고 있습니다…", en: "Sending…" },
  sent: ({ ko, en }) => ({ ko: `✓ 평가를 보냈습니다: ${ko}`, en: `✓ Sent: ${en}` }),
  change: { ko: "바꾸기", en: "Change" },
  again: { ko: "다시 묻기", en: "Ask again" },
  loading: {
    ko: "모델을 불러오고 있습니다. 질문을 미리 쓸 수 있습니다.",
    en: "The model is loading. You can write your question meanwhile.",
  },
  offline: {
    ko: "서비스에 연결할 수 없습니다. 연결되면 알려 드립니다.",
    en: "The service cannot be reached. This will say when it is back.",
  },
  ready: { ko: "준비되었습니다.", en: "Ready." },
  cleared: { ko: "대화를 지웠습니다.", en: "The conversation is cleared." },
  wrongKey: { ko: "키가 맞지 않습니다.", en: "This key is not valid." },
  verified: { ko: "예: 해시가 매니페스트와 같음", en: "yes: the hash is the manifest's" },
  unverified: { ko: "아니요: 검증하지 않고 시작함", en: "no: started without verification" },
  yes: { ko: "예", en: "yes" },
  no: { ko: "아니요", en: "no" },
  calibrated: { ko: "보정됨", en: "calibrated" },
  adapter: { ko: "어댑터", en: "adapter" },
  uncalibrated: { ko: "보정되지 않음", en: "not calibrated" },
  unknown: { ko: "알 수 없음", en: "unknown" },
};

const ERRORS = {
  offline: { ko: "서비스에 연결할 수 없습니다.", en: "The service cannot be reached." },
  interrupted: { ko: "연결이 끊겨 답변이 완전하지 않습니다.", en: "The connection broke: the answer is not complete." },
  context_length_exceeded: { ko: "질문이 너무 깁니다. 줄여서 다시 물어 주십시오.", en: "The question is too long. Please shorten it." },
  request_too_large: { ko: "질문이 너무 깁니다. 줄여서 다시 물어 주십시오.", en: "The question is too long. Please shorten it." },
  invalid_api_key: { ko: "API 키가 필요합니다.", en: "An API key is needed." },
  guidelines_unavailable: {
    ko: "병원 지침을 읽을 수 없습니다. 지침 근거를 끄면 지침 없이 답합니다.",
    en: "The guidelines cannot be read. Switch them off to be answered without them.",
  },
  timeout: { ko: "제한 시간 안에 답을 시작하지 못했습니다.", en: "No answer began in time." },
  draining: { ko: "서비스를 멈추는 중입니다. 잠시 뒤에 다시 물어 주십시오.", en: "The service is stopping. Please ask again later." },
  unavailable: { ko: "모델을 쓸 수 없습니다. 전산 담당자에게 알려 주십시오.", en: "The model is not available. Please tell your IT department." },
};

/** What to say of an AskError; the service's own words follow where there are none of ours. */
export const errorWords = (error) => {
  if (ERRORS[error.code]) return ERRORS[error.code];
  const detail = [error.status, error.message].filter(Boolean).join(" ");
  return { ko: `답하지 못했습니다. (${detail})`, en: `No answer could be given. (${detail})` };
};

const FEEDBACK_ERRORS = {
  offline: {
    ko: "서비스에 연결할 수 없어 보내지 못했습니다. 연결되면 보내기를 다시 누르십시오.",
    en: "Not sent: the service cannot be reached. Press Send again when it is back.",
  },
  interrupted: {
    ko: "연결이 끊겨 저장되었는지 알 수 없습니다. 보내기를 다시 누르십시오.",
    en: "The connection broke before the service said that it is stored. Press Send again.",
  },
  audit_unavailable: {
    ko: "서비스가 평가를 저장하지 못했습니다. 전산 담당자에게 알리고 보내기를 다시 누르십시오.",
    en: "The service could not store it. Tell your IT department and press Send again.",
  },
  audit_off: {
    ko: "이 서비스는 평가를 보관하지 않습니다. 전산 담당자에게 직접 알려 주십시오.",
    en: "This service keeps no feedback. Please tell your IT department directly.",
  },
  request_not_found: {
    ko: "이 답변의 기록이 남아 있지 않아 평가를 받을 수 없습니다. 다시 묻고 평가해 주십시오.",
    en: "The record of this answer is gone. Ask again and rate the new answer.",
  },
  invalid_api_key: {
    ko: "API 키가 없어 보내지 못했습니다. 보내기를 다시 누르고 키를 넣으십시오.",
    en: "Not sent: an API key is needed. Press Send again and enter it.",
  },
};

/** What to say of feedback that was not taken, and what to do. */
export const feedbackErrorWords = (error) => {
  if (FEEDBACK_ERRORS[error.code]) return FEEDBACK_ERRORS[error.code];
  const detail = [error.status, error.message].filter(Boolean).join(" ");
  return {
    ko: `보내지 못했습니다. 잠시 뒤에 보내기를 다시 누르십시오. (${detail})`,
    en: `Not sent. Press Send again in a moment. (${detail})`,
  };
};
