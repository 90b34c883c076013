import type { TrainOptions } from "../distill/index.js";
import type { Backend, FloatDType } from "../ggml/index.js";
import {
  countParameters,
  loadWeights,
  type ModelTensors,
  type ModelWeights,
  openWeights,
  type PassWeights,
  STATES_SHARE,
  StreamedWeights,
} from "../models/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { formatBytes, formatCount } from "../system/format.js";
import { freeMemory } from "../system/memory.js";
import type { JobOptions } from "./job.js";

type MemoryOptions = Pick<JobOptions, "memoryBytes" | "ranks" | "onNote">;

/** Weights that a job reads, with a word where they do not fit in memory. @param dtype of matrices on the device */
export function weightsFor(
  backend: Backend,
  tensors: ModelTensors,
  dtype: FloatDType,
  { memoryBytes, ranks, onNote }: MemoryOptions,
): PassWeights {
  const weights = openWeights(backend, tensors, { dtype, memoryBytes: memoryFor(backend, { memoryBytes, ranks }) });
  if (weights instanceof StreamedWeights)
    onNote?.(
      `the model's weights do not fit in ${describeMemory(memoryBytes)}: they are read layer by layer in each pass over data`,
    );
  return weights;
}

/**
 * Memory that is left for a job beside its weights on the device: of what it is told to take, or of what is free. Of that, each of several
 * processes on a machine has a part, counted from before any of them took some.
 */
export function memoryFor(
  backend: Backend,
  { memoryBytes, ranks }: Pick<MemoryOptions, "memoryBytes" | "ranks">,
): number {
  if (memoryBytes !== undefined) return Math.max(0, memoryBytes - backend.takenBytes);
  if (ranks === undefined || backend.device.kind !== "cpu")
    return backend.freeBytes() / processesPerDevice(backend, ranks);
  return Math.max(0, ranks.local.freeBytes / ranks.local.size - backend.takenBytes);
}

/** How much of the free memory training takes: some of it is for what is not counted. */
const TRAINING_SHARE = 0.95;

/** Memory for a training: what it is told to take, or most of what is free. */
export const memoryForTraining = (backend: Backend, options: Pick<MemoryOptions, "memoryBytes" | "ranks">): number =>
  (options.memoryBytes === undefined ? TRAINING_SHARE : 1) * memoryFor(backend, options);

/** How many processes of a machine share a device: all its processor, and GPUs only where there are too few. */
export const processesPerDevice = (
  { places, alike }: Pick<Backend, "places" | "alike">,
  ranks: JobOptions["ranks"],
): number => Math.ceil((ranks?.local.size ?? 1) / Math.floor(alike / places));

/** Memory for the hidden states of a model between its steps; what does not fit goes to disk. */
export const statesBytes = ({ memoryBytes, ranks }: Pick<MemoryOptions, "memoryBytes" | "ranks">): number =>
  STATES_SHARE * (memoryBytes ?? freeMemory() / (ranks?.local.size ?? 1));

export const describeMemory = (memoryBytes: number | undefined): string =>
  memoryBytes === undefined ? "the free memory" : formatBytes(memoryBytes);

/** Settings of a training that its memory depends on. */
export type TrainingMemory = Partial<Pick<TrainOptions, "optimizerState" | "freeGradients">>;

/**
 * The memory that training so many parameters takes, besides activations: weights, gradients, and two moments of AdamW.
 * @param sharers the processes that divide the moments; each has the sums of its share of the gradients, too, and without our kernels a
 * copy of its share of the weights
 */
export function trainingBytes(
  parameters: number,
  { optimizerState, freeGradients }: TrainingMemory,
  sharers: { readonly ranks?: number | undefined; readonly hasKernels?: boolean } = {},
): number {
  const { ranks = 1, hasKernels = true } = sharers;
  if (ranks > 1) return parameters * (4 + 4 + (4 + 2 * 4 + (hasKernels ? 0 : 4)) / ranks);
  return parameters * (4 + (freeGradients === true ? 0 : 4) + 2 * (optimizerState === "8bit" ? 1 + 4 / 256 : 4));
}

/** What the memory of a shared training depends on. */
export const sharersOf = ({ kernels }: Pick<Backend, "kernels">, { ranks }: Pick<MemoryOptions, "ranks">) => ({
  ranks: ranks?.size,
  hasKernels: kernels !== undefined,
});

/** @throws CoppiceError where training so many parameters does not fit in memory: better now than killed for it in hours */
export function checkTrainable(
  backend: Backend,
  parameters: number,
  training: TrainingMemory,
  options: Pick<MemoryOptions, "memoryBytes" | "ranks">,
): void {
  if (training.optimizerState === "8bit" && backend.kernels === undefined)
    throw new UsageError(
      `--optimizer-state 8bit takes kernels of ours, which ${backend.device.name} does not have: leave it out`,
    );
  const memoryBytes = memoryForTraining(backend, options);
  const bytes = trainingBytes(parameters, training, sharersOf(backend, options));
  if (bytes > memoryBytes)
    throw new CoppiceError(
      `training ${formatCount(parameters)} parameters takes ${formatBytes(bytes)} for weights, gradients and the optimizer's moments alone, and there are ${formatBytes(memoryBytes)}: ` +
        `${options.ranks === undefined ? adviceFor(backend, parameters, training, memoryBytes) : ""}cut more (--target), refit without training (prune --start refit), or say how much memory there is (--memory)`,
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
  options: Pick<MemoryOptions, "memoryBytes" | "ranks">,
): ModelWeights {
  checkTrainable(backend, countParameters(model.parameters, model.sizes), training, options);
  return loadWeights(backend, model, source, { dtype: "f32", trainable: true });
}
