import { z } from "zod";
import { multipleChoice } from "../kinds.js";
import { trim } from "../python-text.js";

const row = z.object({
  sentence: z.string().includes("_"),
  option1: z.string(),
  option2: z.string(),
  answer: z.enum(["1", "2"]),
});

/** WinoGrande (Sakaguchi et al. 2019), scored on what follows the blank (Trinh & Le 2018, "partial"). */
export const winogrande = multipleChoice({
  name: "winogrande",
  version: 1,
  schema: row,
  dataset: { repo: "allenai/winogrande", config: "winogrande_xl" },
  splits: { train: "train", validation: "validation" },
  fewShot: { count: 5 },
  options: ({ sentence, option1, option2 }) => {
    const blank = sentence.indexOf("_");
    const [before, after] = [sentence.slice(0, blank), trim(sentence.slice(blank + 1))];
    return [option1, option2].map((option) => ({ context: before + option, continuation: after }));
  },
  right: ({ answer }) => [Number(answer) - 1],
  metrics: ["acc"],
});
