import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import { adapterScales, isGguf, type TensorSource } from "../checkpoint/index.js";
import { storedType } from "../checkpoint/stored-type.js";
import type { RunDirectory } from "../distill/index.js";
import { openRunnable } from "../generate/index.js";
import type { FloatDType } from "../ggml/index.js";
import { type Checkpoint, openCheckpoint } from "../models/index.js";
import { exportGguf, type FileKind, type GgufOrigin, nameOf, type WrittenModel } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import { fileStamp } from "../system/file-stamp.js";
import { cacheDirectory, hashBytes } from "../system/files.js";
import { logOf } from "../system/log.js";
import { checkApart } from "../system/places.js";
import { modelFiles, modelIdentity, modelInput } from "./inputs.js";
import type { JobOptions } from "./job.js";
import { checkInLlamaCpp, findModel, type OpenModel, openModel, type RunOnlyModel } from "./open-model.js";
import { checkDirectoryName, checkNewFile, claim, inRun, type OverwriteOptions, type RunJob } from "./output.js";
import { writeDirectory } from "./write-directory.js";

const log = logOf("jobs");

export interface ExportJob extends RunJob, OverwriteOptions, Omit<GgufFileOptions, "run"> {
  readonly model: string;
  /** A .gguf file, or a directory in Hugging Face's layout. */
  readonly out: string;
  /** The type of the matrices; as stored by default. */
  readonly dtype?: FloatDType | undefined;
}

export interface ExportOutcome extends WrittenModel {
  readonly seconds: number;
}

/**
 * Writes a model in the other format: GGUF for llama.cpp and what is built on it, or a Hugging Face directory.
 * @example
 * ```ts
 * import { exportModel } from "coppice";
 *
 * const { files, bytes } = await exportModel({ model: "./smaller", out: "./smaller.gguf", dtype: "f16" });
 * console.log(files, bytes);
 * ```
 */
export async function exportModel(job: ExportJob): Promise<ExportOutcome> {
  const started = performance.now();
  const timed = (written: WrittenModel) => ({ ...written, seconds: (performance.now() - started) / 1000 });
  if (!isGguf(job.out)) {
    checkDirectoryName(job.out);
    const { checkpoint } = await openModel(job.model, job);
    const inputs = modelInput("the model", checkpoint);
    return timed(await inRun(job, inputs, (run) => exportDirectory(run, job, checkpoint)));
  }
  const found = await findModel(job.model, job);
  const origin = originOf(found);
  checkApart(job.out, modelInput("the model", origin));
  checkNewFile(job.out, job);
  await checkConvertible(found);
  const kind = job.dtype ?? storedType(sourceOf(origin));
  return timed(await exportGguf(job.out, origin, { kind, ...exportOptions(job, "export", origin) }));
}

/** What a GGUF file is made from: another GGUF file itself, rather than our own reading of it. */
export const originOf = (found: OpenModel | RunOnlyModel): GgufOrigin =>
  found.checkpoint === undefined ? found.file : (found.file ?? found.checkpoint);

const sourceOf = (origin: GgufOrigin): TensorSource => ("model" in origin ? origin.source : origin);

/** @throws FormatError for a file that neither our own engine nor llama.cpp can load, and for a directory's model that llama.cpp cannot compute */
export async function checkConvertible(found: OpenModel | RunOnlyModel): Promise<void> {
  if (found.checkpoint === undefined) await openRunnable(found.file.path);
  else if (found.file === undefined) checkInLlamaCpp(found.model);
}

/** Options of jobs that write GGUF files. */
export interface GgufFileOptions {
  /** The model's name in the files and in their names; its directory's or file's name by default. */
  readonly name?: string | undefined;
  readonly shardBytes?: number | undefined;
  /** llama.cpp's name for the tokenizer's pre-tokenization, for tokenizers in which it is not recognized. */
  readonly preTokenizer?: string | undefined;
  /** The run that owns the files, if another job writes them in its directory. */
  readonly run?: RunDirectory | undefined;
}

/** Options for writing GGUF files, taken from a job. */
export const exportOptions = (
  job: JobOptions & GgufFileOptions,
  stage: string,
  { files: read }: { readonly files: readonly string[] },
) => ({
  onFiles: (files: readonly string[]) => {
    // a large model is split into files, whose names are known now; those that are read may be such files
    for (const file of files)
      checkApart(
        file,
        read.map((path) => ({ what: "a file of the model", path })),
      );
    ownFiles(job.run, files);
  },
  name: job.name,
  threads: job.threads ?? availableParallelism(),
  shardBytes: job.shardBytes,
  preTokenizer: job.preTokenizer,
  signal: job.signal,
  onBytes: (done: number, total: number) => job.onProgress?.({ stage, done, total, unit: "bytes" }),
});

/** Registers files in a run's directory as its own. */
function ownFiles(run: RunDirectory | undefined, files: readonly string[]): void {
  for (const file of files) run?.own(...path.relative(run.path, file).split(path.sep));
}

async function exportDirectory(run: RunDirectory, job: ExportJob, checkpoint: Checkpoint): Promise<WrittenModel> {
  const { dtype, shardBytes, preTokenizer, overwrite } = job;
  if (preTokenizer !== undefined) throw new UsageError("--pre-tokenizer is for GGUF files: name one with --out");
  if (overwrite === true)
    throw new UsageError("--overwrite is for GGUF files: --restart writes a directory's model again");
  claim(run, job, { command: "export", inputs: { model: await modelIdentity(checkpoint) }, dtype, shardBytes });
  if (!run.finished) {
    const place = (name: string) => run.own(name);
    writeDirectory(checkpoint, checkpoint.directory, { ...job, place }, "export");
    run.finish();
  }
  const { files, bytes } = openCheckpoint(job.out);
  return { files, bytes, notes: [] };
}

/** Options for running a MODEL in llama.cpp. */
export interface RunnableOptions extends JobOptions {
  /** The kind of file to export to; as stored by default. */
  readonly kind?: FileKind | undefined;
  /** llama.cpp's name of the tokenizer's rules, for one that is not known. */
  readonly preTokenizer?: string | undefined;
}

/**
 * The GGUF file of a MODEL for llama.cpp to run: the model itself if it is one, else a file exported to the cache.
 * @example
 * ```ts
 * import { runnableGguf } from "coppice";
 *
 * const file = await runnableGguf("./smaller", { kind: "q8_0" });
 * console.log(file); // ready for any program that is built on llama.cpp
 * ```
 */
export async function runnableGguf(reference: string, job: RunnableOptions): Promise<string> {
  const found = await findModel(reference, job);
  if (found.file !== undefined && job.kind === undefined) return found.file.path;
  const origin = originOf(found);
  const kind = job.kind ?? storedType(sourceOf(origin));
  const folder = path.join(
    cacheDirectory(),
    "exported",
    hashBytes(JSON.stringify([EXPORT_VERSION, fileIdentity(origin), kind, job.preTokenizer])).slice(0, 32),
  );
  const file = path.join(folder, `${nameOf(origin)}-${kind}.gguf`);
  const isCached = existsSync(file);
  log.debug(isCached ? "export cached" : "export not cached", { model: reference, file });
  if (isCached) return file;
  await checkConvertible(found);
  const shardBytes = Number.POSITIVE_INFINITY; // a single file, which the next call finds by its name
  await exportGguf(file, origin, { kind, ...exportOptions(job, `export ${kind}`, origin), shardBytes });
  return file;
}

/** Increase it when the files for the same model change, so that older ones in the cache are not used. */
const EXPORT_VERSION = 2;

/** Changes when a model's files do. Quick, as only their sizes and times are read. */
export const fileIdentity = (model: GgufOrigin): readonly unknown[] => [
  ...modelFiles(model).map(fileStamp),
  ...adapterScales(model.path),
];
