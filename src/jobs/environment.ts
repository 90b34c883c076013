import {
  type GgufFile,
  type HubOptions,
  isGguf,
  resolveModel,
  splitAdapters,
  tensorBytes,
} from "../checkpoint/index.js";
import { type Corpus, type CorpusOptions, openCorpus, Tokenizer, type TokenStream } from "../data/index.js";
import { Backend, type BackendOptions, type FloatDType } from "../ggml/index.js";
import {
  type Checkpoint,
  countParameters,
  type Model,
  type ModelTensors,
  openCheckpoint,
  openGgufModel,
  storedSource,
  summariseGguf,
  writeModel,
} from "../models/index.js";

import { CoppiceError, FormatError } from "../system/errors.js";
import type { Invocation } from "./invocation.js";
import { noteOverlap } from "./sanity.js";

/** Something that goes on and takes a while. */
export interface ProgressEvent {
  /** What is being done, for example `distill`. */
  readonly stage: string;
  readonly done: number;
  readonly total: number;
  readonly unit:
    | "tokens"
    | "bytes"
    | "sequences"
    | "candidates"
    | "steps"
    | "tensors"
    | "files"
    | "requests"
    | "tasks"
    | "programs";
  /** A short remark, for example the current loss. */
  readonly detail?: string | undefined;
}

/** What every job may be given. */
export interface JobOptions extends BackendOptions {
  readonly hub?: HubOptions | undefined;
  readonly onProgress?: ((event: ProgressEvent) => void) | undefined;
  /** Told what the user should know though the job goes on. */
  readonly onNote?: ((note: string) => void) | undefined;
  /** Asks the job to stop as soon as its state is safe. */
  readonly signal?: AbortSignal | undefined;
  /** The command line that started the job, for the record of a run. */
  readonly invocation?: Invocation | undefined;
}

/** A model that a job works on. */
export interface OpenModel {
  readonly checkpoint: Checkpoint;
  readonly model: Model;
  readonly parameters: number;
  /** Where it is a GGUF file: that file as it is. */
  readonly file: GgufFile | undefined;
}

/** A GGUF file that our own engine does not compute: llama.cpp may. */
export interface RunOnlyModel {
  readonly checkpoint: undefined;
  readonly file: GgufFile;
  readonly parameters: number;
  /** Why. */
  readonly reason: string;
}

/** Finds a MODEL argument: a directory, a GGUF file of any architecture, or a hub id. */
export async function findModel(reference: string, options: JobOptions = {}): Promise<OpenModel | RunOnlyModel> {
  const onProgress = options.onProgress;
  const at = await resolveModel(reference, {
    ...options.hub,
    ...(onProgress && {
      onProgress: ({ file, doneBytes, totalBytes }) =>
        onProgress({ stage: `download ${reference}`, done: doneBytes, total: totalBytes, unit: "bytes", detail: file }),
    }),
  });
  const { base, adapters } = splitAdapters(at);
  const isFile = isGguf(base) && adapters.length === 0;
  const opened = isFile ? openGgufModel(at) : { file: undefined, checkpoint: openCheckpoint(at) };
  const { file, checkpoint } = opened;
  for (const note of checkpoint?.notes ?? []) options.onNote?.(`${reference}: ${note}`);
  if (checkpoint === undefined)
    return { file, checkpoint, reason: opened.reason, parameters: summariseGguf(file).parameters };
  const { model } = checkpoint;
  return { file, checkpoint, model, parameters: countParameters(model.parameters, model.sizes) };
}

/** What takes a GGUF file that our own engine does not compute. */
export const RUN_ONLY =
  "GGUF files of any architecture that llama.cpp loads can be run and converted: generate, chat, serve, inspect, quantize --type, export to .gguf, evaluate --engine llama.cpp";

/** Finds a MODEL argument that our own engine is to compute. @throws FormatError when it does not know the model */
export async function openModel(reference: string, options: JobOptions = {}): Promise<OpenModel> {
  const found = await findModel(reference, options);
  if (found.checkpoint === undefined) throw new FormatError(`${found.reason}. ${RUN_ONLY}`);
  return found;
}

/** Where training and validation tokens come from. */
export interface DataOptions extends Pick<CorpusOptions, "field" | "separator" | "cacheDir"> {
  readonly data: readonly string[];
  /** Held-out text; a share of the documents where none is given, or the end of the text where they are few. */
  readonly validation?: readonly string[] | undefined;
}

/** Share of the documents held out when no validation data is given. */
const HELD_OUT_SHARE = 0.02;
/** Fewer validation tokens than this say nothing. */
const MIN_VALIDATION_TOKENS = 256;
/** Of little text, what is left to train on. */
const MIN_TRAINED_SHARE = 0.8;

/** The model that reads the data, and where its tokenizer is. */
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
  // few documents, or only one: the end of the text
  const end = train.length - Math.max(MIN_VALIDATION_TOKENS, Math.ceil(HELD_OUT_SHARE * train.length));
  if (end < MIN_TRAINED_SHARE * train.length)
    throw new CoppiceError(
      `the data has ${train.length} tokens, of which ${MIN_VALIDATION_TOKENS} would be needed to validate on: give more, or validation data (--validation)`,
    );
  return { train: train.part(0, end), validation: train.part(end, train.length) };
}

/** Tokenises data, or finds it tokenised. */
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
    ...(options.hub && { hub: options.hub }),
    onNote: options.onNote,
    onProgress: ({ tokens, bytes, totalBytes }) =>
      options.onProgress?.({
        stage: "tokenise",
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

/** Where a model directory goes, and in what form. */
export interface WriteJob extends JobOptions {
  readonly out: string;
  readonly dtype?: FloatDType | undefined;
  readonly shardBytes?: number | undefined;
  /** Where each file goes, as `writeCheckpoint` has it. */
  readonly place?: ((name: string) => string) | undefined;
}

/** Writes a model directory, with progress. @param from whose tokenizer, settings and licence go along */
export function writeDirectory(tensors: ModelTensors, from: string, job: WriteJob, stage: string): void {
  const stored = [...storedSource(tensors).tensors.values()];
  const total = stored.reduce((sum, info) => sum + tensorBytes({ ...info, dtype: job.dtype ?? info.dtype }), 0);
  let done = 0;
  writeModel(job.out, tensors, {
    carryFrom: from,
    place: job.place,
    onNote: job.onNote,
    dtype: job.dtype,
    shardBytes: job.shardBytes,
    onBytes: (count) => {
      done += count;
      job.onProgress?.({ stage, done, total, unit: "bytes" });
    },
  });
}

/** Runs a job on a device and gives the device back. */
export async function onDevice<T>(options: BackendOptions, job: (backend: Backend) => Promise<T>): Promise<T> {
  const backend = Backend.open(options);
  try {
    return await job(backend);
  } finally {
    backend.free();
  }
}
