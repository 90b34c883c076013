import { type GgufFile, isGguf, resolveModel, splitAdapters, tensorBytes } from "../checkpoint/index.js";
import { type Corpus, type CorpusOptions, openCorpus, Tokenizer, type TokenStream } from "../data/index.js";
import type { FloatDType } from "../ggml/index.js";
import {
  type Checkpoint,
  countParameters,
  type Model,
  type ModelTensors,
  openCheckpoint,
  openGgufModel,
  storedSource,
  summarizeGguf,
  writeModel,
} from "../models/index.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import type { JobOptions } from "./job.js";
import { noteOverlap } from "./sanity.js";

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

/** Where training and validation tokens come from. */
export interface DataOptions extends Pick<CorpusOptions, "field" | "separator" | "cacheDir"> {
  readonly data: readonly string[];
  /** Held-out text; by default a share of the documents, or the end of the text if there are few documents. */
  readonly validation?: readonly string[] | undefined;
}

/** The share of the documents that is held out when there is no validation data. */
const HELD_OUT_SHARE = 0.02;
/** A loss on fewer tokens than this would be meaningless. */
const MIN_VALIDATION_TOKENS = 256;
/** The smallest share of the text to train on. */
const MIN_TRAINED_SHARE = 0.8;

/** The model that reads the data, and the directory of its tokenizer. */
export interface Reader {
  readonly directory: string;
  readonly model: Pick<Model, "needsBeginToken">;
}

/** Opens training and validation tokens for a model. */
export async function openData(
  reader: Reader,
  data: DataOptions,
  options: JobOptions,
): Promise<{ readonly train: TokenStream; readonly validation: TokenStream }> {
  if (data.validation !== undefined && data.validation.length > 0) {
    const train = await openTokens(data.data, reader, data, options);
    const validation = await openTokens(data.validation, reader, data, options);
    noteOverlap(train, validation, options);
    return { train: train.train, validation: validation.train };
  }
  const { train, heldOut } = await openTokens(data.data, reader, data, options, HELD_OUT_SHARE);
  if (heldOut.length >= MIN_VALIDATION_TOKENS) return { train, validation: heldOut };
  // there are few documents, or only one: hold out the end of the text
  const end = train.length - Math.max(MIN_VALIDATION_TOKENS, Math.ceil(HELD_OUT_SHARE * train.length));
  if (end < MIN_TRAINED_SHARE * train.length)
    throw new CoppiceError(
      `the data has only ${train.length} tokens, of which ${MIN_VALIDATION_TOKENS} are needed for validation: give more data, or validation data (--validation)`,
    );
  return { train: train.part(0, end), validation: train.part(end, train.length) };
}

/** Tokenizes data, or opens it from the cache. */
export async function openTokens(
  inputs: readonly string[],
  { directory, model }: Reader,
  data: Omit<DataOptions, "data" | "validation">,
  options: JobOptions,
  heldOutShare = 0,
): Promise<Corpus> {
  const tokenizer = await Tokenizer.load(directory);
  const corpus = await openCorpus(inputs, tokenizer, {
    ...data,
    heldOutShare,
    hub: options.hub,
    onNote: options.onNote,
    onProgress: ({ tokens, bytes, totalBytes }) =>
      options.onProgress?.({
        stage: "tokenize",
        done: bytes,
        total: totalBytes,
        unit: "bytes",
        detail: `${tokens} tokens`,
      }),
  });
  const { beginToken } = tokenizer;
  if (!model.needsBeginToken || beginToken === undefined) return corpus;
  return {
    ...corpus,
    train: corpus.train.beginningWith(beginToken),
    heldOut: corpus.heldOut.beginningWith(beginToken),
  };
}

/** How to write a model directory. */
export interface WriteJob extends JobOptions {
  readonly out: string;
  readonly dtype?: FloatDType | undefined;
  readonly shardBytes?: number | undefined;
  /** The path of each file by its name, as for `writeCheckpoint`. */
  readonly place?: ((name: string) => string) | undefined;
}

/** Writes a model directory, with progress. @param from the directory whose tokenizer, settings and license are copied */
export function writeDirectory(tensors: ModelTensors, from: string, job: WriteJob, stage: string): void {
  const { out, dtype, shardBytes, place, onNote } = job;
  const stored = [...storedSource(tensors).tensors.values()];
  const total = stored.reduce((sum, info) => sum + tensorBytes({ ...info, dtype: dtype ?? info.dtype }), 0);
  let done = 0;
  writeModel(out, tensors, {
    carryFrom: from,
    place,
    onNote,
    dtype,
    shardBytes,
    onBytes: (count) => {
      done += count;
      job.onProgress?.({ stage, done, total, unit: "bytes" });
    },
  });
}
