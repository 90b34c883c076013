import { Command } from "commander";
import type { FileKind } from "../quantize/index.js";
import { action, example } from "./command.js";
import {
  addCommon,
  addData,
  addLoss,
  addTarget,
  addTraining,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  type LossFlags,
  lossOptions,
  MODEL,
  parseCount,
  parseNames,
  parsePositive,
  type TargetFlags,
  type TrainFlags,
  targetOptions,
  trainSettings,
} from "./options.js";
import { parseFileKinds } from "./quantize.js";
import { renderCompression } from "./render.js";

interface Flags extends CommonFlags, DataFlags, LossFlags, TargetFlags, TrainFlags {
  readonly out: string;
  readonly teacherCorrection?: number | true | undefined;
  readonly intermediate?: boolean | undefined;
  readonly restart?: boolean | undefined;
  readonly gguf?: FileKind[] | undefined;
  readonly evaluate?: string[] | undefined;
  readonly evaluateLimit?: number | undefined;
  readonly benchmarkData?: string | undefined;
}

export const compressCommand = example(
  addCommon(
    addLoss(
      addTraining(
        addTarget(
          addValidation(
            addData(
              new Command("compress").description(
                "Make a smaller model of a model: calibrate, search, prune, distil, report",
              ),
              true,
            ),
          ),
        ),
        "2M",
      ),
    ),
  )
    .argument("<model>", MODEL)
    .requiredOption("--out <dir>", "the run's directory; ends as the smaller model")
    .option(
      "--teacher-correction [tokens]",
      "adapt the teacher to the data first (default: on a third of the tokens)",
      parseCount,
    )
    .option("--gguf <kinds>", "also quantize the result, for example q4_k_m,q8_0", parseFileKinds)
    .option(
      "--evaluate <tasks>",
      "measure teacher, pruned model and student on benchmarks, for example minitron",
      parseNames,
    )
    .option("--evaluate-limit <n>", "documents of each benchmark, or that share of them where below 1", parsePositive)
    .option("--benchmark-data <directory>", "benchmark data, DATASET/CONFIG/SPLIT.jsonl, looked at before the hub")
    .option("--intermediate", "match intermediate states too; for deep cuts")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { compress } = await import("../jobs/compress.js");
        const outcome = await compress({
          ...job,
          ...dataOptions(flags),
          ...targetOptions(flags),
          ...lossOptions(flags),
          model,
          out: flags.out,
          settings: trainSettings(flags),
          teacherCorrection: flags.teacherCorrection,
          ...(flags.intermediate === true && { intermediate: true }),
          ...(flags.gguf && { gguf: flags.gguf }),
          ...(flags.evaluate && {
            evaluate: { tasks: flags.evaluate, limit: flags.evaluateLimit, data: flags.benchmarkData },
          }),
          ...(flags.restart === true && { restart: true }),
        });
        print(outcome, renderCompression);
      }),
    ),
  "coppice compress ./model --target 0.67x --data corpus.jsonl --tokens 100M --out ./smaller",
);
