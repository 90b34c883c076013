import { z } from "zod";
import { choices, multipleChoice } from "../kinds.js";
import { trimStart } from "../python-text.js";

const row = z.object({
  question_stem: z.string(),
  choices: z.object({ text: z.array(z.string()).nonempty(), label: z.array(z.string()) }),
  answerKey: z.string(),
});

/** OpenBookQA (Mihaylov et al. 2018). */
export const openbookqa = multipleChoice({
  name: "openbookqa",
  version: 1,
  schema: row,
  dataset: { repo: "allenai/openbookqa", config: "main" },
  splits: { train: "train", validation: "validation", test: "test" },
  options: (r) => choices(r.question_stem, r.choices.text),
  right: (r) => [r.choices.label.indexOf(trimStart(r.answerKey))],
  metrics: ["acc", "acc_norm"],
});
