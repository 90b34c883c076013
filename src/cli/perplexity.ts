import { Command, Option } from "commander";
import { action, example } from "./command.js";
import {
  addCommon,
  addData,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  MODEL,
  parseAtLeastOne,
} from "./options.js";

interface Flags extends CommonFlags, DataFlags {
  readonly sequenceLength?: number | undefined;
  readonly compute?: "f32" | "bf16" | undefined;
}

export const perplexityCommand = example(
  addCommon(addData(new Command("perplexity").description("Measure a model's loss on a text"), true))
    .argument("<model>", MODEL)
    .option("--sequence-length <n>", "tokens per sequence (default: 512, or the model's limit)", parseAtLeastOne)
    .addOption(new Option("--compute <type>", "number type of matrix products").choices(["f32", "bf16"]).default("f32"))
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { measurePerplexity } = await import("../jobs/measure.js");
        const result = await measurePerplexity({
          ...job,
          ...dataOptions(flags),
          model,
          sequenceLength: flags.sequenceLength,
          ...(flags.compute && { computeType: flags.compute }),
        });
        print(
          result,
          ({ loss, perplexity, tokens }) =>
            `loss ${loss.toFixed(4)} nats/token, perplexity ${perplexity.toFixed(3)}, ${tokens} tokens`,
        );
      }),
    ),
  "coppice perplexity ./model --data wikitext-2-test.txt",
);
