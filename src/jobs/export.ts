import { existsSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";

import { adapterScales, isGguf, type TensorSource } from "../checkpoint/index.js";
import { storedType } from "../checkpoint/stored-type.js";
import type { RunDirectory } from "../distill/index.js";
import { openRunnable } from "../generate/index.js";
import type { FloatDType } from "../ggml/index.js";
import { type Checkpoint, openCheckpoint } from "../models/index.js";
import { exportGguf, type FileKind, type GgufOrigin, nameOf, type WrittenModel } from "../quantize/index.js";
import { cacheDirectory, hashBytes } from "../system/files.js";
import { logOf } from "../system/log.js";
import { checkApart } from "../system/places.js";
import {
  findModel,
  type JobOptions,
  type OpenModel,
  openModel,
  type RunOnlyModel,
  writeDirectory,
} from "./environment.js";
import {
  checkNewFile,
  claim,
  inRun,
  modelFiles,
  modelIdentity,
  modelInput,
  type OverwriteOptions,
  type RunJob,
} from "./output.js";

const log = logOf("jobs");

export interface ExportJob extends RunJob, OverwriteOptions, Omit<WriteOptions, "run"> {
  readonly model: string;
  /** A .gguf file, or a directory for Hugging Face's layout. */
  readonly out: string;
  /** Type of the matrices; as stored by default. */
  readonly dtype?: FloatDType | undefined;
}

export interface ExportOutcome extends WrittenModel {
  readonly seconds: number;
}

/** Writes a model in the other format: GGUF for llama.cpp and what is built on it, or a Hugging Face directory. */
export async function exportModel(job: ExportJob): Promise<ExportOutcome> {
  const started = performance.now();
  const timed = (written: WrittenModel) => ({ ...written, seconds: (performance.now() - started) / 1000 });
  if (!isGguf(job.out)) {
    const { checkpoint } = await openModel(job.model, job);
    const inputs = modelInput("the model", checkpoint);
    return timed(await inRun(job, inputs, (run) => asDirectory(run, job, checkpoint)));
  }
  const found = await findModel(job.model, job);
  const origin = originOf(found);
  checkApart(job.out, modelInput("the model", origin));
  checkNewFile(job.out, job);
  await checkConvertible(found);
  const kind = job.dtype ?? storedType(sourceOf(origin));
  return timed(await exportGguf(job.out, origin, { kind, ...writeOptions(job, "export") }));
}

/** What a GGUF file is made of: another one as it is, rather than what is known of it here. */
export const originOf = (found: OpenModel | RunOnlyModel): GgufOrigin =>
  found.checkpoint === undefined ? found.file : (found.file ?? found.checkpoint);

const sourceOf = (origin: GgufOrigin): TensorSource => ("model" in origin ? origin.source : origin);

/** @throws FormatError for a file of which neither our engine nor llama.cpp can make a model */
export async function checkConvertible({ checkpoint, file }: OpenModel | RunOnlyModel): Promise<void> {
  if (checkpoint === undefined) await openRunnable(file.path);
}

/** What a job says of the GGUF files that it writes. */
export interface WriteOptions {
  /** What the model is called in its files and their names; as its directory or file by default. */
  readonly name?: string | undefined;
  readonly shardBytes?: number | undefined;
  /** llama.cpp's name for how texts are cut into words, where the tokenizer's own is not recognised. */
  readonly preTokenizer?: string | undefined;
  /** The run in whose directory they lie, where another job asked for them. */
  readonly run?: RunDirectory | undefined;
}

/** Options for writing files, taken from a job. */
export const writeOptions = (job: JobOptions & WriteOptions, stage: string) => ({
  onFiles: job.run && ((files: readonly string[]) => ownFiles(job.run, files)),
  name: job.name,
  threads: job.threads ?? availableParallelism(),
  shardBytes: job.shardBytes,
  preTokenizer: job.preTokenizer,
  signal: job.signal,
  onBytes: (done: number, total: number) => job.onProgress?.({ stage, done, total, unit: "bytes" }),
});

/** Files that a run has another job write in its directory. */
function ownFiles(run: RunDirectory | undefined, files: readonly string[]): void {
  for (const file of files) run?.own(...path.relative(run.path, file).split(path.sep));
}

async function asDirectory(run: RunDirectory, job: ExportJob, checkpoint: Checkpoint): Promise<WrittenModel> {
  const { dtype, shardBytes } = job;
  claim(run, job, { command: "export", inputs: { model: await modelIdentity(checkpoint) }, dtype, shardBytes });
  if (!run.finished) {
    const place = (name: string) => run.own(name);
    writeDirectory(checkpoint, checkpoint.directory, { ...job, place }, "export");
    run.finish();
  }
  const { files, bytes } = openCheckpoint(job.out);
  return { files, bytes, notes: [] };
}

/**
 * The GGUF file of a MODEL that llama.cpp is to run: the file itself, or one exported to the cache once.
 * @param kind the type to export to; as stored by default
 */
export async function runnableGguf(
  reference: string,
  job: JobOptions & { readonly kind?: FileKind | undefined },
): Promise<string> {
  const found = await findModel(reference, job);
  if (found.file !== undefined && job.kind === undefined) return found.file.path;
  const origin = originOf(found);
  const kind = job.kind ?? storedType(sourceOf(origin));
  const folder = path.join(
    cacheDirectory(),
    "exported",
    hashBytes(JSON.stringify([EXPORT_VERSION, identityOf(origin), kind])).slice(0, 32),
  );
  const file = path.join(folder, `${nameOf(origin)}-${kind}.gguf`);
  const whole = { shardBytes: Number.POSITIVE_INFINITY }; // one name to look for
  const cached = existsSync(file);
  log.debug(cached ? "export cached" : "export not cached", { model: reference, file });
  if (cached) return file;
  await checkConvertible(found);
  await exportGguf(file, origin, { kind, ...writeOptions(job, `export ${kind}`), ...whole });
  return file;
}

/** Counted up when what is written for the same model changes, so that older files in the cache are not used. */
const EXPORT_VERSION = 1;

/** What changes when a model's files do: their names, sizes and times. */
export const identityOf = (model: GgufOrigin): readonly unknown[] => [
  ...modelFiles(model).map((file) => {
    const { size, mtimeMs, ctimeMs, ino } = statSync(file);
    return [path.resolve(file), size, mtimeMs, ctimeMs, ino];
  }),
  ...adapterScales(model.path),
];
