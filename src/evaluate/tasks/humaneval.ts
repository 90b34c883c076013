import { z } from "zod";
import { programming } from "../kinds.js";
import { mean } from "../metrics.js";

const row = z.object({
  prompt: z.string(),
  canonical_solution: z.string(),
  test: z.string(),
  entry_point: z.string().regex(/^\w+$/),
});

/** HumanEval (Chen et al. 2021). */
export const humaneval = programming({
  name: "humaneval",
  version: 1,
  schema: row,
  dataset: { repo: "openai/openai_humaneval" },
  splits: { test: "test" },
  fewShot: { none: true },
  prompt: ({ prompt }) => prompt,
  answer: ({ canonical_solution: solution }) => solution,
  program: (text, { prompt, test, entry_point: name }) => `${prompt}${text}\n${test}\ncheck(${name})`,
  until: ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
  maxTokens: 1024,
  metric: (k) => mean(`pass@${k}`, "create_test"),
});
