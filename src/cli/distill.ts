import { Command } from "commander";
import { withAdapters } from "../checkpoint/adapters.js";
import { action, example } from "./command.js";
import {
  addCommon,
  addData,
  addLoss,
  addTraining,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  type LossFlags,
  lossOptions,
  MODEL,
  type TrainFlags,
  trainSettings,
} from "./options.js";
import { renderTraining } from "./render.js";

interface Flags extends CommonFlags, DataFlags, LossFlags, TrainFlags {
  readonly teacher: string;
  readonly teacherLora?: string[] | undefined;
  readonly out: string;
  readonly restart?: boolean | undefined;
}

export const distillCommand = example(
  addCommon(
    addLoss(
      addTraining(
        addValidation(
          addData(new Command("distill").description("Train a smaller model to answer as a larger one"), true),
        ),
        "2M",
      ),
    ),
  )
    .argument("<student>", MODEL)
    .requiredOption("--teacher <model>", "the model to learn from; same vocabulary")
    .option("--teacher-lora <adapters...>", "LoRA adapters to merge into the teacher")
    .requiredOption("--out <dir>", "the run's directory; ends as the trained model")
    .action(
      action(async ({ job, print }, flags: Flags, student: string) => {
        const { distill } = await import("../jobs/distill.js");
        const outcome = await distill({
          ...job,
          ...dataOptions(flags),
          ...lossOptions(flags),
          student,
          teacher: withAdapters(flags.teacher, flags.teacherLora),
          out: flags.out,
          settings: { tokens: 2e6, ...trainSettings(flags) },
          ...(flags.restart === true && { restart: true }),
        });
        print(outcome, (result) => `loss before: ${result.before.loss.toFixed(4)}\n${renderTraining(result)}`);
      }),
    ),
  "coppice distill ./smaller --teacher ./model --data corpus.jsonl --tokens 100M --out ./student",
);
