import type { FloatDType } from "../ggml/index.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  DEFAULT_TOKENS,
  data,
  dataOptions,
  memory,
  type TrainFlags,
  training,
  trainSettings,
  validation,
} from "./options.js";
import { renderTraining } from "./render.js";

interface Flags extends CommonFlags, DataFlags, TrainFlags {
  readonly out: string;
  readonly fromScratch?: boolean | undefined;
  readonly dtype?: FloatDType | undefined;
  readonly restart?: boolean | undefined;
}

export const pretrainCommand = command(
  "pretrain",
  "Train on predicting the next token: from scratch, or continuing from a model",
)
  .with(data, validation, training, common, memory, adapters)
  .argument("<model>", "model directory or hub id; with --from-scratch a directory with config.json and tokenizer.json")
  .requiredOption("--out <dir>", "the run's directory; becomes the trained model")
  .option("--from-scratch", "start from random weights")
  .addOption(option("--dtype <type>", "stored type of the weights").choices(["f32", "f16", "bf16"]))
  .examples("coppice pretrain ./tiny-config --from-scratch --data corpus.txt --tokens 10M --out ./tiny")
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { out, fromScratch, dtype, restart } = flags;
      const settings = { tokens: DEFAULT_TOKENS, ...trainSettings(flags) };
      const { pretrain } = await import("../jobs/pretrain.js");
      const outcome = await pretrain({
        ...job,
        ...dataOptions(flags),
        model,
        out,
        settings,
        fromScratch,
        dtype,
        restart,
      });
      print(outcome, renderTraining);
    }),
  );
