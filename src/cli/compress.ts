import { FILE_KINDS, type FileKind } from "../quantize/recipes.js";
import { UsageError } from "../system/errors.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import { taskNames } from "./evaluate.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  data,
  dataOptions,
  type LossFlags,
  loss,
  lossOptions,
  MODEL,
  memory,
  type TargetFlags,
  type TrainFlags,
  target,
  targetOptions,
  training,
  trainSettings,
  validation,
} from "./options.js";
import { parseAtLeastOne, parseCount, parseNames, parsePositive } from "./parse.js";
import { parseFileKinds } from "./quantize.js";
import { recipe } from "./recipe.js";
import { renderCompression } from "./render.js";

interface Flags extends CommonFlags, DataFlags, LossFlags, TargetFlags, TrainFlags {
  readonly out: string;
  readonly teacherCorrection?: number | true | undefined;
  readonly rounds?: number | undefined;
  readonly intermediate?: boolean | undefined;
  readonly restart?: boolean | undefined;
  readonly gguf?: FileKind[] | undefined;
  readonly evaluate?: string[] | undefined;
  readonly evaluateLimit?: number | undefined;
  readonly benchmarkData?: string | undefined;
}

export const compressCommand = command(
  "compress",
  "Make a smaller model of a model: calibrate, search, prune, distill, report",
)
  .with(recipe, data, validation, target, training, loss, common, memory, adapters)
  .argument("<model>", MODEL)
  .requiredOption("--out <dir>", "the run's directory; becomes the smaller model")
  .option(
    "--teacher-correction [tokens]",
    "adapt the teacher to the data first (default: on a third of the tokens)",
    parseCount,
  )
  .addOption(
    option("--gguf <kinds>", "also quantize the result, for example q4_k_m,q8_0")
      .argParser(parseFileKinds)
      .completes(() => FILE_KINDS, { list: true }),
  )
  .addOption(
    option("--evaluate <tasks>", "measure teacher, pruned model and student on benchmarks, for example minitron")
      .argParser(parseNames)
      .completes(taskNames, { list: true }),
  )
  .option("--evaluate-limit <n>", "documents of each benchmark, or that share of them where below 1", parsePositive)
  .option("--benchmark-data <directory>", "benchmark data, DATASET/CONFIG/SPLIT.jsonl, looked at before the hub")
  .option(
    "--rounds <n>",
    "cut step by step: each round cuts, refits and distills, on an equal share of the tokens (default: 1)",
    parseAtLeastOne,
  )
  .option("--intermediate", "match intermediate states too; for deep cuts")
  .examples(
    "coppice compress ./model --target 0.67x --data corpus.jsonl --tokens 100M --out ./smaller",
    "coppice compress ./model --target 0.4x --rounds 2 --max-width-cut 0.6 --data corpus.jsonl --tokens 200M --out ./smaller",
    "coppice compress --recipe recipe.yaml",
  )
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { out, teacherCorrection, rounds, intermediate, gguf, restart } = flags;
      const { evaluate: tasks, evaluateLimit: limit, benchmarkData } = flags;
      if (tasks === undefined && (limit !== undefined || benchmarkData !== undefined))
        throw new UsageError(
          "--evaluate-limit and --benchmark-data are for --evaluate: without tasks nothing is evaluated",
        );
      const { compress } = await import("../jobs/compress.js");
      const outcome = await compress({
        ...job,
        ...dataOptions(flags),
        ...targetOptions(flags),
        ...lossOptions(flags),
        model,
        out,
        settings: trainSettings(flags),
        teacherCorrection,
        rounds,
        intermediate,
        gguf,
        evaluate: tasks && { tasks, limit, data: benchmarkData },
        restart,
      });
      print(outcome, renderCompression);
    }),
  );
