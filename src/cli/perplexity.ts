import { action } from "./action.js";
import { command, option } from "./command.js";
import { adapters, type CommonFlags, common, type DataFlags, data, dataOptions, MODEL, memory } from "./options.js";
import { parseAtLeastOne } from "./parse.js";

interface Flags extends CommonFlags, DataFlags {
  readonly sequenceLength?: number | undefined;
  readonly compute?: "f32" | "bf16" | undefined;
}

export const perplexityCommand = command("perplexity", "Measure a model's loss on a text")
  .with(data, common, memory, adapters)
  .argument("<model>", MODEL)
  .option("--sequence-length <n>", "tokens per sequence (default: 512, or the model's limit)", parseAtLeastOne)
  .addOption(option("--compute <type>", "number type of matrix products").choices(["f32", "bf16"]).default("f32"))
  .examples("coppice perplexity ./model --data wikitext-2-test.txt")
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { sequenceLength, compute: computeType } = flags;
      const { measurePerplexity } = await import("../jobs/measure.js");
      const result = await measurePerplexity({ ...job, ...dataOptions(flags), model, sequenceLength, computeType });
      print(
        result,
        ({ loss, perplexity, tokens }) =>
          `loss ${loss.toFixed(4)} nats/token, perplexity ${perplexity.toFixed(3)}, ${tokens} tokens`,
      );
    }),
  );
