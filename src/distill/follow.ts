import type { Ranks } from "../ranks/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { TrainOptions } from "./train-options.js";
import { type MicroBatch, type StepOutcome, TrainingStep, type TrainingStepInputs } from "./training-step.js";

/**
 * How several ranks compute a batch: at least one micro-batch for each.
 * @throws UsageError when the batch has fewer sequences than there are ranks
 */
export function sharedOptions(options: TrainOptions, ranks: number): TrainOptions {
  const { batchSize, optimizerState, freeGradients } = options;
  if (optimizerState === "8bit" || freeGradients === true)
    throw new UsageError(
      "--optimizer-state 8bit and --free-gradients are for one process: several divide the optimizer's state anyway",
    );
  if (batchSize < ranks)
    throw new UsageError(
      `a batch of ${batchSize} sequences cannot be shared by ${ranks} processes: --batch-size ${ranks} or more, or fewer processes`,
    );
  let microBatchSize = Math.min(options.microBatchSize, Math.floor(batchSize / ranks));
  while (batchSize % microBatchSize !== 0) microBatchSize--;
  return { ...options, microBatchSize };
}

/** The leader's side of a training step that ranks take together. */
export function leadStep(
  step: TrainingStep,
  ranks: Ranks,
  batches: readonly MicroBatch[],
  learningRate: number,
  stepNumber: number,
): Promise<StepOutcome> {
  return ranks.together(() => {
    for (let to = 1; to < ranks.size; to++) {
      const theirs = batches.slice(...ranks.share(batches.length, to));
      ranks.post({ kind: "step", learningRate, stepNumber, numbers: theirs.map(({ numbers }) => numbers) }, to);
      for (const { tokens, targets } of theirs) for (const ids of [tokens, targets]) ranks.sendData(ids, to);
    }
    return step.take(batches.slice(...ranks.share(batches.length)), learningRate, stepNumber);
  });
}

/** The followers' side of a training: does what the leader says until it is over. */
export async function followTraining(inputs: TrainingStepInputs & { readonly ranks: Ranks }): Promise<void> {
  const { ranks, options } = inputs;
  const step = new TrainingStep(inputs);
  const { shared } = step;
  if (shared === undefined) throw new CoppiceError("a training that is followed is shared");
  const receiveIds = () => ranks.receiveIds(options.microBatchSize * options.sequenceLength);
  try {
    for (;;) {
      const message = await ranks.receive<TrainingMessage>();
      switch (message.kind) {
        case "spread":
          await step.spread();
          break;
        case "step": {
          const { numbers, learningRate, stepNumber } = message;
          const batches = numbers.map((each) => ({ numbers: each, tokens: receiveIds(), targets: receiveIds() }));
          await step.take(batches, learningRate, stepNumber);
          break;
        }
        case "give":
        case "take":
          shared[message.kind](message.name);
          break;
        case "end":
          return;
      }
    }
  } finally {
    step.free();
  }
}

/** What the leader of a training says. */
type TrainingMessage =
  | {
      readonly kind: "step";
      readonly numbers: readonly (readonly number[])[];
      readonly learningRate: number;
      readonly stepNumber: number;
    }
  /** All get the leader's weights. */
  | { readonly kind: "spread" }
  /** A piece of the optimizer's state goes to the leader, or comes from there. */
  | { readonly kind: "give" | "take"; readonly name: string }
  | { readonly kind: "end" };
