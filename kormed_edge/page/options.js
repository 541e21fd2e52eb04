// The options of a multiple-choice item: what split_options of kormed_edge/records.py does.

const OPTION = /^\s*([1-9])\)(.*)/;
const LINE_END = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;

const joined = (lines) => {
  const parts = [lines[0].match(OPTION)[2], ...lines.slice(1)];
  return parts.map((part) => part.trim()).filter(Boolean).join(" ");
};

/** {stem, options} of a text; no options give an empty list. Searched from the end, because a stem
 * may hold lines that look the same. */
export const splitOptions = (text) => {
  const lines = text.split(LINE_END);
  const numbers = lines.map((line) => Number(line.match(OPTION)?.[1] ?? 0));
  const run = [];
  let expected = 0;
  for (let i = lines.length - 1; i >= 0; i -= 1) {
    if (!numbers[i]) continue;
    if (run.length && numbers[i] !== expected) break;
    run.unshift(i);
    expected = numbers[i] - 1;
  }
  if (run.length < 2 || numbers[run[0]] !== 1) return { stem: text.trim(), options: [] };
  const options = run.map((start, k) => joined(lines.slice(start, run[k + 1])));
  return { stem: lines.slice(0, run[0]).join("\n").trim(), options };
};
