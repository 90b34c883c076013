import { sizeOf } from "../models/index.js";
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
  const { model } = inputs.student;
  // what each layer begins with is kept in any case; graphs of batches that are far too large would take minutes
  const leastBytesOf = (size: number) =>
    size * sequenceLength * sizeOf("hidden", model.sizes) * model.layerCount * Float32Array.BYTES_PER_ELEMENT;
  const fits = (size: number) => leastBytesOf(size) <= left && bytesOf(size) <= left;
  const fitting = divisorsOf(batchSize).find((size) => size <= options.microBatchSize && fits(size));
  if (fitting === undefined)
    throw new CoppiceError(
      `one sequence of ${sequenceLength} tokens takes ${formatBytes(bytesOf(1))} in training beside ${formatBytes(fixed)} for weights, gradients, moments and the teacher, and there are ${formatBytes(available)}: ` +
        adviceFor(options),
    );
  if (fitting < batchSize && options.freeGradients === true)
    throw new CoppiceError(
      `a batch of ${batchSize} sequences takes more than ${formatBytes(Math.max(left, leastBytesOf(batchSize)))} at once, and ${formatBytes(left)} are left: with --free-gradients a batch must fit, so --batch-size ${fitting}`,
    );
  return fitting;
}

/** Largest first. */
function divisorsOf(n: number): number[] {
  const small = Array.from({ length: Math.floor(Math.sqrt(n)) }, (_, i) => i + 1).filter((one) => n % one === 0);
  return [...new Set([...small, ...small.map((one) => n / one)])].sort((a, b) => b - a);
}

function adviceFor({ recompute }: TrainOptions): string {
  const less = recompute ? "" : "--recompute, ";
  return `${less}a shorter --sequence-length or --memory if there is more`;
}
