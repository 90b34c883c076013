import type { Backend, FloatDType } from "../ggml/index.js";
import { type ModelTensors, type ReadWeights, readWeights, StreamedWeights } from "../models/index.js";
import { formatBytes } from "../system/format.js";
import type { JobOptions } from "./job.js";

/** Weights that a job reads, with a word where they do not fit in memory. @param dtype of matrices on the device */
export function weightsFor(
  backend: Backend,
  tensors: ModelTensors,
  dtype: FloatDType,
  { memoryBytes, onNote }: Pick<JobOptions, "memoryBytes" | "onNote">,
): ReadWeights {
  const weights = readWeights(backend, tensors, { dtype, memoryBytes });
  if (weights instanceof StreamedWeights)
    onNote?.(
      `the model's weights do not fit in ${memoryBytes === undefined ? "the free memory" : formatBytes(memoryBytes)}: they are read layer by layer in each pass over data`,
    );
  return weights;
}
