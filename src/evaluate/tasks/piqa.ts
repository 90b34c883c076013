import { z } from "zod";
import { choices, multipleChoice } from "../kinds.js";

const row = z.object({ goal: z.string(), sol1: z.string(), sol2: z.string(), label: z.number().int() });

/** PIQA (Bisk et al. 2019). */
export const piqa = multipleChoice({
  name: "piqa",
  version: 1,
  schema: row,
  dataset: { repo: "baber/piqa" },
  splits: { train: "train", validation: "validation" },
  options: ({ goal, sol1, sol2 }) => choices(`Question: ${goal}\nAnswer:`, [sol1, sol2]),
  right: ({ label }) => [label],
  metrics: ["acc", "acc_norm"],
});
