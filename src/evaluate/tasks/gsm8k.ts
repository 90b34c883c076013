import { z } from "zod";
import { generation } from "../kinds.js";
import { mean } from "../metrics.js";
import { trim } from "../python-text.js";

const row = z.object({ question: z.string(), answer: z.string() });

/** Stands for an answer that was not found. */
const INVALID = "[invalid]";

/** The number after the first "####". */
const strict = (text: string): string => trim(/#### (-?[0-9.,]+)/.exec(text)?.[1] ?? INVALID);

/** The last number anywhere. */
function flexible(text: string): string {
  const [, first, second] = [...text.matchAll(/(-?[$0-9.,]{2,})|(-?[0-9]+)/g)].at(-1) ?? [];
  return trim(first || second || INVALID);
}

/** Removes what a comparison ignores: commas, dollar signs, everything before the result, a final full stop, and case. */
const plain = (text: string): string =>
  [/,/g, /\$/g, /[\s\S]*#### /g, /\.$/g].reduce((left, ignored) => left.replace(ignored, ""), text).toLowerCase();

/** GSM8K (Cobbe et al. 2021): grade school problems whose answers end in "#### result". */
export const gsm8k = generation({
  name: "gsm8k",
  version: 3,
  schema: row,
  dataset: { repo: "openai/gsm8k", config: "main" },
  splits: { train: "train", test: "test", fewShot: "train" },
  fewShot: { count: 5 },
  prompt: ({ question }) => `Question: ${question}\nAnswer:`,
  answer: ({ answer }) => answer,
  until: ["Question:", "</s>", "<|im_end|>"],
  metrics: [mean("exact_match", "strict-match"), mean("exact_match", "flexible-extract")],
  judge: (text, { answer }) => [strict, flexible].map((extract) => (plain(extract(text)) === plain(answer) ? 1 : 0)),
});
