import { type GgufFile, isGguf, resolveModel, splitAdapters } from "../checkpoint/index.js";
import {
  type Checkpoint,
  countParameters,
  type Model,
  openCheckpoint,
  openGgufModel,
  summarizeGguf,
} from "../models/index.js";
import { FormatError } from "../system/errors.js";
import type { JobOptions } from "./job.js";

/** A model that a job works on. */
export interface OpenModel {
  readonly checkpoint: Checkpoint;
  readonly model: Model;
  readonly parameters: number;
  /** The GGUF file itself, if the model is one. */
  readonly file: GgufFile | undefined;
}

/** A GGUF file that our own engine does not support, but llama.cpp may. */
export interface RunOnlyModel {
  readonly checkpoint: undefined;
  readonly file: GgufFile;
  readonly parameters: number;
  /** Why our own engine does not support it. */
  readonly reason: string;
}

/** Opens a MODEL argument: a directory, a GGUF file of any architecture, or a hub id. */
export async function findModel(reference: string, options: JobOptions = {}): Promise<OpenModel | RunOnlyModel> {
  const { hub, onProgress } = options;
  const location = await resolveModel(reference, {
    ...hub,
    signal: options.signal,
    onProgress:
      onProgress === undefined
        ? hub?.onProgress
        : ({ file: detail, doneBytes: done, totalBytes: total }) =>
            onProgress({ stage: `download ${reference}`, done, total, unit: "bytes", detail }),
  });
  const { base, adapters } = splitAdapters(location);
  const isFile = isGguf(base) && adapters.length === 0;
  const opened = isFile ? openGgufModel(location) : { file: undefined, checkpoint: openCheckpoint(location) };
  const { file, checkpoint } = opened;
  for (const note of checkpoint?.notes ?? []) options.onNote?.(`${reference}: ${note}`);
  if (checkpoint === undefined)
    return { file, checkpoint, reason: opened.reason, parameters: summarizeGguf(file).parameters };
  const { model } = checkpoint;
  return { file, checkpoint, model, parameters: countParameters(model.parameters, model.sizes) };
}

/** What can be done with a GGUF file that our own engine does not support. */
export const RUN_ONLY =
  "GGUF files of any architecture that llama.cpp loads can be run and converted: generate, chat, serve, inspect, quantize --type, export to .gguf, evaluate --engine llama.cpp";

/** What can be done with a model that llama.cpp cannot compute. */
export const NOT_IN_LLAMA_CPP =
  "It can be pruned, distilled and measured (compress without --gguf, evaluate, perplexity), and its directories are for transformers";

/** Why llama.cpp cannot compute a model that our own engine supports; undefined where it can. */
export function refusalOf(model: Model): string | undefined {
  try {
    model.gguf();
    return undefined;
  } catch (error) {
    if (error instanceof FormatError) return error.message;
    throw error;
  }
}

/** @throws FormatError for a model that llama.cpp cannot compute, so that no GGUF file can be made of it */
export function checkInLlamaCpp(model: Model, advice: string = NOT_IN_LLAMA_CPP): void {
  const refusal = refusalOf(model);
  if (refusal !== undefined) throw new FormatError(`${refusal}. ${advice}`);
}

/**
 * Opens a MODEL argument for our own engine. @throws FormatError when the engine does not support it
 * @example
 * ```ts
 * import { openModel } from "coppice";
 *
 * const { model, parameters } = await openModel("./model");
 * console.log(model.architecture, parameters, model.sizes.hidden);
 * ```
 */
export async function openModel(reference: string, options: JobOptions = {}): Promise<OpenModel> {
  const found = await findModel(reference, options);
  if (found.checkpoint === undefined) throw new FormatError(`${found.reason}. ${RUN_ONLY}`);
  return found;
}
