import { z } from "zod";
import { choices, multipleChoice } from "../kinds.js";
import type { Task } from "../task.js";

const row = z.object({
  question: z.string(),
  choices: z.object({ text: z.array(z.string()).nonempty(), label: z.array(z.string()) }),
  answerKey: z.string(),
});

/** The AI2 Reasoning Challenge (Clark et al. 2018). */
const arc = (name: string, config: string, count: number): Task =>
  multipleChoice({
    name,
    version: 1,
    schema: row,
    dataset: { repo: "allenai/ai2_arc", config },
    splits: { train: "train", validation: "validation", test: "test" },
    fewShot: { count },
    options: (r) => choices(`Question: ${r.question}\nAnswer:`, r.choices.text),
    right: (r) => [r.choices.label.indexOf(r.answerKey)],
    metrics: ["acc", "acc_norm"],
  });

export const arcChallenge = arc("arc_challenge", "ARC-Challenge", 25);
export const arcEasy = arc("arc_easy", "ARC-Easy", 0);
