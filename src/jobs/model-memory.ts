import type { TrainOptions } from "../distill/index.js";
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

/** Settings of a training that its memory depends on. */
export type TrainingMemory = Partial<Pick<TrainOptions, "optimizerState" | "freeGradients">>;

/** The memory that training so many parameters takes, besides activations: weights, gradients, and two moments of AdamW. */
export const trainingBytes = (parameters: number, { optimizerState, freeGradients }: TrainingMemory): number =>
  parameters * (4 + (freeGradients === true ? 0 : 4) + 2 * (optimizerState === "8bit" ? 1 + 4 / 256 : 4));

/** @throws CoppiceError where training so many parameters does not fit in memory: better now than killed for it in hours */
export function checkTrainable(
  backend: Backend,
  parameters: number,
  training: TrainingMemory,
  { memoryBytes = backend.freeBytes() }: Pick<MemoryOptions, "memoryBytes">,
): void {
  const bytes = trainingBytes(parameters, training);
  if (bytes > memoryBytes)
    throw new CoppiceError(
      `training ${formatCount(parameters)} parameters takes ${formatBytes(bytes)} for weights, gradients and the optimizer's moments alone, and there are ${formatBytes(memoryBytes)}: ` +
        `${adviceFor(backend, parameters, training, memoryBytes)}cut more (--target), refit without training (prune --start refit), or say how much memory there is (--memory)`,
    );
}

/** The options that make a training fit, if there are any. */
function adviceFor(backend: Backend, parameters: number, training: TrainingMemory, memoryBytes: number): string {
  const packed: TrainingMemory = backend.kernels === undefined ? {} : { optimizerState: "8bit" };
  const [flag, settings] =
    [
      ["--free-gradients", { freeGradients: true }] as const,
      ["--optimizer-state 8bit", packed] as const,
      ["--optimizer-state 8bit --free-gradients", { freeGradients: true, ...packed }] as const,
    ].find(([, less]) => trainingBytes(parameters, { ...training, ...less }) <= memoryBytes) ?? [];
  if (flag === undefined || settings === undefined) return "";
  return `${flag} makes it ${formatBytes(trainingBytes(parameters, { ...training, ...settings }))}; else `;
}

/** Loads weights to be trained. @throws CoppiceError where training them does not fit in memory */
export function trainableWeights(
  backend: Backend,
  { model, source }: Pick<ModelTensors, "model" | "source">,
  training: TrainingMemory,
  options: Pick<MemoryOptions, "memoryBytes">,
): ModelWeights {
  checkTrainable(backend, countParameters(model.parameters, model.sizes), training, options);
  return loadWeights(backend, model, source, { dtype: "f32", trainable: true });
}
