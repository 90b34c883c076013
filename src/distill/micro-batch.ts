import { CoppiceError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import type { TrainOptions } from "./train-options.js";
import { activationBytes, type TrainingStepInputs } from "./training-step.js";

/** Memory for a training step. */
export interface StepMemory {
  /** All there is. */
  readonly available: number;
  /** What weights, gradients, moments and the teacher take. */
  readonly fixed: number;
}

/**
 * The number of sequences to compute at once: the whole batch, or the largest part that divides it and fits in memory.
 * @throws CoppiceError with figures where not even one sequence fits, or a part would do but gradients are not to be kept
 */
export function fittingMicroBatch(inputs: TrainingStepInputs, { available, fixed }: StepMemory): number {
  const { options } = inputs;
  const { batchSize, sequenceLength } = options;
  const left = Math.max(0, available - fixed);
  const bytesOf = (microBatchSize: number) => activationBytes({ ...inputs, options: { ...options, microBatchSize } });
  const sizes = divisorsOf(batchSize).filter((size) => size <= options.microBatchSize);
  const fitting = sizes.find((size) => bytesOf(size) <= left);
  if (fitting === undefined)
    throw new CoppiceError(
      `one sequence of ${sequenceLength} tokens takes ${formatBytes(bytesOf(1))} in training beside ${formatBytes(fixed)} for weights, gradients, moments and the teacher, and there are ${formatBytes(available)}: ` +
        adviceFor(options),
    );
  if (fitting < batchSize && options.freeGradients === true)
    throw new CoppiceError(
      `a batch of ${batchSize} sequences takes ${formatBytes(bytesOf(batchSize))} at once, and ${formatBytes(left)} are left: with --free-gradients a batch must fit, so --batch-size ${fitting}`,
    );
  return fitting;
}

/** Largest first. */
const divisorsOf = (n: number): number[] =>
  Array.from({ length: n }, (_, i) => n - i).filter((candidate) => n % candidate === 0);

function adviceFor({ recompute }: TrainOptions): string {
  const less = recompute ? "" : "--recompute, ";
  return `${less}a shorter --sequence-length or --memory if there is more`;
}
