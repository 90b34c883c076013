import { z } from "zod";
import { lastWord } from "../kinds.js";

const row = z.object({ text: z.string() });

/** LAMBADA (Paperno et al. 2016), as OpenAI prepared it: the last word of a passage. */
export const lambadaOpenai = lastWord({
  name: "lambada_openai",
  version: 1,
  schema: row,
  dataset: { repo: "EleutherAI/lambada_openai", config: "default" },
  splits: { test: "test" },
  context: ({ text }) => text.slice(0, Math.max(0, text.lastIndexOf(" "))),
  continuation: ({ text }) => ` ${text.slice(text.lastIndexOf(" ") + 1)}`,
});
