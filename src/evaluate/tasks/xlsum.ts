import { z } from "zod";
import { generation } from "../kinds.js";
import { mean, rougeL } from "../metrics.js";

const row = z.object({ text: z.string(), summary: z.string() });

/**
 * XL-Sum in English (Hasan et al. 2021), on 20 % of the test split. The harness has the data set for other languages only, with
 * prompts for instructed models; this definition, for models that continue text, is our own.
 */
export const xlsumEnglish = generation({
  name: "xlsum_english",
  version: 1,
  schema: row,
  dataset: { repo: "csebuetnlp/xlsum", config: "english" },
  splits: { validation: "validation", test: "test", fewShot: "validation" },
  fewShot: { count: 3 },
  limit: 0.2,
  prompt: ({ text }) => `Article: ${text}\nSummary:`,
  answer: ({ summary }) => summary,
  until: ["\n"],
  maxTokens: 128,
  metrics: [mean("rouge_l")],
  judge: (text, { summary }) => [rougeL(summary, text)],
});
