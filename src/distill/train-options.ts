import { UsageError } from "../system/errors.js";
import {
  ADAMW_DEFAULTS,
  type AdamWOptions,
  type ComputeType,
  type OptimizerState,
  type Schedule,
} from "../tensor/index.js";

export interface TrainOptions extends AdamWOptions {
  /** How many tokens to train on; rounded up to whole steps. */
  readonly tokens: number;
  /** Tokens per sequence. */
  readonly sequenceLength: number;
  /** Sequences per optimizer step. */
  readonly batchSize: number;
  /** Sequences computed at once; a step accumulates the gradients of several such. Divides the batch size. */
  readonly microBatchSize: number;
  readonly learningRate: number;
  readonly minimumLearningRate: number;
  readonly schedule: Schedule["kind"];
  readonly warmupSteps: number;
  readonly seed: number;
  readonly computeType: ComputeType;
  /** Recompute each layer's activations for its gradient instead of keeping them: less memory, about a third more time. */
  readonly recompute: boolean;
  /** How the optimizer's moments are kept; f32 by default. */
  readonly optimizerState?: OptimizerState | undefined;
  /**
   * Whether each weight is updated as soon as its gradient is known, instead of keeping all gradients until the last one is: clipped by
   * the global norm of the step before.
   */
  readonly freeGradients?: boolean | undefined;
  /** Steps between checkpoints, of which the last step has one, too; one is saved every ten minutes besides. Infinity: only those. */
  readonly saveEverySteps: number;
  /** Steps between measurements on the validation data; 0 for none. */
  readonly validateEverySteps: number;
}

/**
 * Default settings for a model of a width. The peak learning rate is arXiv 2408.11796's 1e-4 at width 4096 and falls with the width
 * to the power of 0.85; it decays to a tenth. The first tenth of the steps, at most 40, warm up.
 */
export function defaultTrainOptions(
  hidden: number,
  tokens: number,
  sequenceLength: number,
  batchSize: number,
): TrainOptions {
  const steps = Math.ceil(tokens / (batchSize * sequenceLength));
  const learningRate = Number((1e-4 * (4096 / hidden) ** 0.85).toPrecision(2));
  return {
    ...ADAMW_DEFAULTS,
    tokens,
    sequenceLength,
    batchSize,
    microBatchSize: batchSize,
    learningRate,
    minimumLearningRate: learningRate / 10,
    schedule: "cosine",
    warmupSteps: warmupFor(steps),
    seed: 0,
    computeType: "bf16",
    recompute: false,
    saveEverySteps: Math.max(10, Math.ceil(steps / 20)),
    validateEverySteps: 0,
  };
}

/** Optimizer steps of a run. */
export const stepsOf = ({ tokens, batchSize, sequenceLength }: TrainOptions): number =>
  Math.ceil(tokens / (batchSize * sequenceLength));

/** The default number of warm-up steps of a run. */
const warmupFor = (steps: number): number => Math.min(40, Math.ceil(steps / 10));

/** Settings for another number of tokens, with at most the default warm-up of such a run. */
export function forTokens(options: TrainOptions, tokens: number): TrainOptions {
  const warmupSteps = Math.min(options.warmupSteps, warmupFor(stepsOf({ ...options, tokens })));
  return { ...options, tokens, warmupSteps };
}

/** In a batch: more than any run has had. */
const MOST_SEQUENCES = 1 << 20;

/** Checks settings. @throws UsageError naming one that is invalid */
export function checkTrainOptions(options: TrainOptions): void {
  const positive = [
    "tokens",
    "sequenceLength",
    "batchSize",
    "microBatchSize",
    "learningRate",
    "saveEverySteps",
  ] as const;
  for (const name of positive)
    if (!(options[name] > 0)) throw new UsageError(`${name} must be positive, not ${options[name]}`);
  if (options.batchSize > MOST_SEQUENCES)
    throw new UsageError(
      `a batch of ${options.batchSize} sequences is too large: it counts sequences, not tokens, of which each has ${options.sequenceLength}`,
    );
  if (options.batchSize % options.microBatchSize !== 0)
    throw new UsageError(
      `the batch of ${options.batchSize} sequences cannot be computed ${options.microBatchSize} at a time`,
    );
  if (options.freeGradients === true && options.batchSize !== options.microBatchSize)
    throw new UsageError(
      `gradients of ${options.batchSize / options.microBatchSize} micro-batches must be kept until they are summed: --free-gradients needs a batch that is computed at once`,
    );
  const steps = stepsOf(options);
  if (options.warmupSteps > steps)
    throw new UsageError(
      `a warm-up of ${options.warmupSteps} steps is longer than the run of ${steps}: the learning rate would never reach ${options.learningRate}`,
    );
  if (options.schedule !== "constant" && options.minimumLearningRate > options.learningRate)
    throw new UsageError(
      `the learning rate would rise: it ends at ${options.minimumLearningRate}, above its peak of ${options.learningRate}`,
    );
  if (!(options.clipNorm > 0 && Number.isFinite(options.clipNorm)))
    throw new UsageError(`clipNorm must be a number more than 0, not ${options.clipNorm}`);
  for (const name of ["weightDecay", "minimumLearningRate", "warmupSteps", "validateEverySteps"] as const)
    if (!(options[name] >= 0 && Number.isFinite(options[name])))
      throw new UsageError(`${name} must be 0 or more, not ${options[name]}`);
}
