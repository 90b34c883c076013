import type { Backend, FloatDType } from "../ggml/index.js";
import {
  countParameters,
  loadWeights,
  type ModelTensors,
  type ModelWeights,
  openWeights,
  type PassWeights,
  StreamedWeights,
} from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { formatBytes, formatCount } from "../system/format.js";
import type { JobOptions } from "./job.js";

type MemoryOptions = Pick<JobOptions, "memoryBytes" | "onNote">;

/** Weights that a job reads, with a word where they do not fit in memory. @param dtype of matrices on the device */
export function weightsFor(
  backend: Backend,
  tensors: ModelTensors,
  dtype: FloatDType,
  { memoryBytes, onNote }: MemoryOptions,
): PassWeights {
  const weights = openWeights(backend, tensors, { dtype, memoryBytes });
  if (weights instanceof StreamedWeights)
    onNote?.(
      `the model's weights do not fit in ${describeMemory(memoryBytes)}: they are read layer by layer in each pass over data`,
    );
  return weights;
}

export const describeMemory = (memoryBytes: number | undefined): string =>
  memoryBytes === undefined ? "the free memory" : formatBytes(memoryBytes);

/** In f32: a weight, its gradient and two moments of AdamW. */
const TRAINING_BYTES = 16;

/** The memory that training so many parameters takes, besides activations. */
export const trainingBytes = (parameters: number): number => TRAINING_BYTES * parameters;

/** @throws CoppiceError where training so many parameters does not fit in memory: better now than killed for it in hours */
export function checkTrainable(
  backend: Backend,
  parameters: number,
  { memoryBytes = backend.freeBytes() }: Pick<MemoryOptions, "memoryBytes">,
): void {
  const bytes = trainingBytes(parameters);
  if (bytes > memoryBytes)
    throw new CoppiceError(
      `training ${formatCount(parameters)} parameters takes ${formatBytes(bytes)} for weights, gradients and the optimizer's moments alone, and there are ${formatBytes(memoryBytes)}: ` +
        "cut more (--target), refit without training (prune --start refit), or say how much memory there is (--memory)",
    );
}

/** Loads weights to be trained. @throws CoppiceError where training them does not fit in memory */
export function trainableWeights(
  backend: Backend,
  { model, source }: Pick<ModelTensors, "model" | "source">,
  options: Pick<MemoryOptions, "memoryBytes">,
): ModelWeights {
  checkTrainable(backend, countParameters(model.parameters, model.sizes), options);
  return loadWeights(backend, model, source, { dtype: "f32", trainable: true });
}
