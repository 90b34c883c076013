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
      for (const { tokens, targets } of theirs)
        for (const ids of [tokens, targets]) ranks.sendData(new Uint8Array(ids.buffer), to);
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
  const receiveIds = (): Int32Array => {
    const ids = new Int32Array(options.microBatchSize * options.sequenceLength);
    ranks.receiveData(new Uint8Array(ids.buffer), 0);
    return ids;
  };
  try {
    for (;;) {
      const message = await ranks.receive();
      if (message.kind === "spread") await step.spread();
      else if (message.kind === "step") {
        const { numbers, learningRate, stepNumber } = message as unknown as StepMessage;
        const batches = numbers.map((each) => ({ numbers: each, tokens: receiveIds(), targets: receiveIds() }));
        await step.take(batches, learningRate, stepNumber);
      } else if (message.kind === "give") shared.give(String(message.name));
      else if (message.kind === "take") shared.take(String(message.name));
      else if (message.kind === "end") return;
      else throw new CoppiceError(`the leader sent an unknown message: ${message.kind}`);
    }
  } finally {
    step.free();
  }
}

interface StepMessage {
  readonly numbers: readonly (readonly number[])[];
  readonly learningRate: number;
  readonly stepNumber: number;
}
