import { Command, Option } from "commander";
import type { FloatDType } from "../ggml/index.js";
import { action, example } from "./command.js";
import {
  addCommon,
  addData,
  addTraining,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  type TrainFlags,
  trainSettings,
} from "./options.js";
import { renderTraining } from "./render.js";

interface Flags extends CommonFlags, DataFlags, TrainFlags {
  readonly out: string;
  readonly fromScratch?: boolean | undefined;
  readonly dtype?: FloatDType | undefined;
  readonly restart?: boolean | undefined;
}

export const pretrainCommand = example(
  addCommon(
    addTraining(
      addValidation(
        addData(
          new Command("pretrain").description("Train on the next token: from scratch, or going on from a model"),
          true,
        ),
      ),
      "2M",
    ),
  )
    .argument(
      "<model>",
      "model directory or hub id; with --from-scratch a directory with config.json and tokenizer.json",
    )
    .requiredOption("--out <dir>", "the run's directory; ends as the trained model")
    .option("--from-scratch", "start from random weights")
    .addOption(new Option("--dtype <type>", "stored type of the weights").choices(["f32", "f16", "bf16"]))
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { pretrain } = await import("../jobs/pretrain.js");
        const outcome = await pretrain({
          ...job,
          ...dataOptions(flags),
          model,
          out: flags.out,
          settings: { tokens: 2e6, ...trainSettings(flags) },
          ...(flags.fromScratch === true && { fromScratch: true }),
          ...(flags.dtype && { dtype: flags.dtype }),
          ...(flags.restart === true && { restart: true }),
        });
        print(outcome, renderTraining);
      }),
    ),
  "coppice pretrain ./tiny-config --from-scratch --data corpus.txt --tokens 10M --out ./tiny",
);
