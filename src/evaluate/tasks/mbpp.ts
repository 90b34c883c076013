import { z } from "zod";
import { programming } from "../kinds.js";
import { mean } from "../metrics.js";

const row = z.object({
  task_id: z.number(),
  text: z.string(),
  code: z.string(),
  test_list: z.array(z.string()).min(3),
});

/** Ids of the problems that serve as worked examples (Austin et al. 2021, section 3). */
const EXAMPLES: readonly unknown[] = [2, 3, 4];

/** Mostly Basic Python Problems (Austin et al. 2021). Measured with three worked examples or, as Minitron was, with none. */
export const mbpp = programming({
  name: "mbpp",
  version: 1,
  schema: row,
  dataset: { repo: "google-research-datasets/mbpp", config: "full" },
  splits: { test: "test", fewShot: "prompt" },
  fewShot: {
    count: 3,
    sampler: "first",
    accepts: (r) => EXAMPLES.includes((r as { readonly task_id?: unknown } | null)?.task_id),
  },
  prompt: ({ text, test_list: tests }) =>
    `You are an expert Python programmer, and here is your task: ${text} Your code should pass these tests:\n\n${tests.slice(0, 3).join("\n")}\n[BEGIN]\n`,
  answer: ({ code }) => `${code}\n[DONE]`,
  program: (text, { test_list: tests }) => `${text}\n${tests.slice(0, 3).join("\n")}`,
  until: ["[DONE]"],
  metric: (k) => mean(`pass_at_${k}`),
});
