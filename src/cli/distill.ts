import { withAdapters } from "../checkpoint/adapters.js";
import { action } from "./action.js";
import { command } from "./command.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  DEFAULT_TOKENS,
  data,
  dataOptions,
  type LossFlags,
  loss,
  lossOptions,
  MODEL,
  memory,
  type TrainFlags,
  training,
  trainSettings,
  validation,
} from "./options.js";
import { renderTraining } from "./render.js";

interface Flags extends CommonFlags, DataFlags, LossFlags, TrainFlags {
  readonly teacher: string;
  readonly teacherLora?: string[] | undefined;
  readonly out: string;
  readonly restart?: boolean | undefined;
}

export const distillCommand = command("distill", "Train a smaller model to answer as a larger one")
  .with(data, validation, training, loss, common, memory, adapters)
  .argument("<student>", MODEL)
  .requiredOption("--teacher <model>", "the model to learn from; same vocabulary")
  .option("--teacher-lora <adapters...>", "LoRA adapters to merge into the teacher")
  .requiredOption("--out <dir>", "the run's directory; becomes the trained model")
  .examples(
    "coppice distill ./smaller --teacher ./model --data corpus.jsonl --tokens 100M --out ./student",
    "mpirun -n 4 coppice distill ./smaller --teacher ./model --data corpus.jsonl --tokens 1B --batch-size 64 --out ./student",
  )
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
        settings: { tokens: DEFAULT_TOKENS, ...trainSettings(flags) },
        restart: flags.restart,
      });
      print(outcome, (result) => `loss before: ${result.before.loss.toFixed(4)}\n${renderTraining(result)}`);
    }),
  );
