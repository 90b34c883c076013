import { z } from "zod";
import { choices, multipleChoice } from "../kinds.js";
import { capitalize, trim } from "../python-text.js";

const row = z.object({
  activity_label: z.string(),
  ctx_a: z.string(),
  ctx_b: z.string(),
  endings: z.array(z.string()).nonempty(),
  label: z.union([z.number().int(), z.string().regex(/^\d+$/).transform(Number)]), // empty in the split without answers
});

/** Removes the markup of the WikiHow documents. */
const clean = (text: string): string =>
  trim(text)
    .replaceAll(" [title]", ". ")
    .replace(/\[[^\n]*?\]/g, "")
    .replaceAll("  ", " ");

/** HellaSwag (Zellers et al. 2019). */
export const hellaswag = multipleChoice({
  name: "hellaswag",
  version: 1,
  schema: row,
  dataset: { repo: "Rowan/hellaswag" },
  splits: { train: "train", validation: "validation" },
  fewShot: { count: 10 },
  options: (r) => choices(clean(`${r.activity_label}: ${r.ctx_a} ${capitalize(r.ctx_b)}`), r.endings.map(clean)),
  right: ({ label }) => [label],
  metrics: ["acc", "acc_norm"],
});
