import type { TokenStream } from "../data/index.js";
import { defaultSequenceLength, type Perplexity, perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import { countParameters, openCheckpoint } from "../models/index.js";
import type { ComputeType } from "../tensor/index.js";
import { type JobOptions, onDevice } from "./job.js";
import { weightsFor } from "./model-memory.js";
import { type DataOptions, openTokens } from "./open-data.js";
import { openModel } from "./open-model.js";
import { checkLength } from "./sanity.js";
import { sharedPerplexity } from "./shared/perplexity.js";

/** A model's size and loss. */
export interface Measurement extends Perplexity {
  readonly parameters: number;
  readonly bytes: number;
}

export interface MeasureOptions {
  readonly sequenceLength?: number | undefined;
  readonly computeType?: ComputeType | undefined;
}

/** Measures the model at a path on validation tokens. */
export async function measure(
  backend: Backend,
  path: string,
  validation: TokenStream,
  stage: string,
  options: MeasureOptions & JobOptions,
): Promise<Measurement> {
  const checkpoint = openCheckpoint(path);
  const { model, bytes } = checkpoint;
  const dtype = (options.computeType ?? "f32") === "f32" ? "f32" : "bf16";
  const weights = weightsFor(backend, checkpoint, dtype, options);
  try {
    const { sequenceLength = defaultSequenceLength(model), computeType = "f32", signal, ranks } = options;
    const onProgress = (done: number, total: number) => options.onProgress?.({ stage, done, total, unit: "sequences" });
    const measured = { backend, weights, path, computeType, options };
    const result =
      ranks === undefined
        ? await perplexity(backend, weights, validation, { sequenceLength, computeType, signal, onProgress })
        : await sharedPerplexity(ranks, measured, validation, sequenceLength, onProgress);
    return { parameters: countParameters(model.parameters, model.sizes), bytes, ...result };
  } finally {
    weights.free();
  }
}

export interface PerplexityJob extends JobOptions, MeasureOptions, Omit<DataOptions, "validation"> {
  readonly model: string;
}

/**
 * Loss and perplexity of a model on data.
 * @example
 * ```ts
 * import { measurePerplexity } from "coppice";
 *
 * const { loss, perplexity, tokens } = await measurePerplexity({ model: "./smaller", data: ["held-out.txt"] });
 * console.log(loss, perplexity, tokens); // loss in nats per token
 * ```
 */
export async function measurePerplexity(job: PerplexityJob): Promise<Perplexity> {
  const { checkpoint, model } = await openModel(job.model, job);
  checkLength(job.sequenceLength, model);
  const { train } = await openTokens(job.data, { directory: checkpoint.directory, model }, job, job);
  return onDevice(job, async (backend) => {
    const { loss, perplexity: value, tokens } = await measure(backend, checkpoint.path, train, "perplexity", job);
    return { loss, perplexity: value, tokens };
  });
}
