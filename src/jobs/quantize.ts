import { existsSync, statSync } from "node:fs";
import path from "node:path";

import { isGguf, openGguf } from "../checkpoint/index.js";

import { Sequences } from "../data/index.js";
import { DivergenceMeter } from "../evaluate/divergence.js";
import { defaultSequenceLength, perplexity } from "../evaluate/index.js";
import { Engine } from "../generate/index.js";
import type { Backend, FloatDType, QuantizedDType } from "../ggml/index.js";
import { loadWeights, type ModelWeights, openCheckpoint } from "../models/index.js";
import {
  exportGguf,
  exportToSize,
  type FileKind,
  type Importance,
  loadImportance,
  measureImportance,
  measureSensitivity,
  nameOf,
  saveImportance,
  type WrittenModel,
} from "../quantize/index.js";
import { FormatError, UsageError } from "../system/errors.js";
import { cacheDirectory, hashBytes, safeFileName } from "../system/files.js";
import { checkApart } from "../system/places.js";
import {
  type DataOptions,
  findModel,
  type JobOptions,
  type OpenModel,
  onDevice,
  openData,
  type RunOnlyModel,
} from "./environment.js";
import { checkConvertible, identityOf, originOf, runnableGguf, type WriteOptions, writeOptions } from "./export.js";
import {
  checkKept,
  checkNewFile,
  dataInputs,
  fileInput,
  modelIdentity,
  modelInput,
  type OverwriteOptions,
} from "./output.js";
import { checkLength } from "./sanity.js";

export interface QuantizeJob extends JobOptions, OverwriteOptions, Partial<DataOptions>, WriteOptions {
  readonly model: string;
  /** A .gguf file for a single result, else a directory. */
  readonly out: string;
  /** Kinds of files to make. */
  readonly types?: readonly FileKind[] | undefined;
  /** A file of at most so many bytes, with the best types for it. */
  readonly sizeBytes?: number | undefined;
  /** Types to choose from for it. */
  readonly candidateTypes?: readonly QuantizedDType[] | undefined;
  /** Measure one type of each tensor, and estimate the others from it. */
  readonly probe?: boolean | undefined;
  /** Importances to use, or where to keep them. */
  readonly importanceFile?: string | undefined;
  /** Calibration sequences: for importances, and for what each type costs. */
  readonly samples?: number | undefined;
  readonly sensitivitySamples?: number | undefined;
  readonly sequenceLength?: number | undefined;
  /** Measure size, loss and speed of every file. */
  readonly report?: boolean | undefined;
}

/** What `--report` measures of a file. */
export interface FileReport {
  readonly loss: number;
  readonly perplexity: number;
  /** Mean divergence of its predictions from the unquantized model's, nats per token. */
  readonly divergence: number;
  readonly promptTokensPerSecond: number;
  readonly generationTokensPerSecond: number;
}

export interface QuantizedFile extends WrittenModel {
  readonly name: string;
  /** Size of the files on disk. */
  readonly fileBytes: number;
  readonly bitsPerWeight: number;
  readonly seconds: number;
  /** How many tensors have each type. */
  readonly types: Readonly<Record<string, number>>;
  readonly report?: FileReport | undefined;
}

export interface QuantizeOutcome {
  /** The model as it was, where a report was asked for. */
  readonly original?: (FileReport & { readonly fileBytes: number }) | undefined;
  readonly files: readonly QuantizedFile[];
}

const DEFAULT_SAMPLES = 128;
const DEFAULT_SENSITIVITY_SAMPLES = 16;
/** About this many tokens are computed at once. */
const BATCH_TOKENS = 2048;
/** Sequences of the report's divergence. */
const REPORT_SAMPLES = 64;
const [SPEED_PROMPT, SPEED_GENERATED] = [256, 64];
/** Up to this size weights are tried in f32, above in f16. */
const F32_LIMIT_BYTES = 4e9;

/**
 * Quantizes a model, to kinds of files, to a size, or both.
 * @example
 * ```ts
 * import { quantize } from "coppice";
 *
 * const { files } = await quantize({
 *   model: "./smaller",
 *   types: ["q8_0"],
 *   sizeBytes: 4 * 2 ** 30, // and one more file, with the best type of each tensor for 4 GiB
 *   data: ["corpus.jsonl"],
 *   report: true,
 *   out: "./gguf",
 * });
 * for (const { name, fileBytes, report } of files) console.log(name, fileBytes, report?.perplexity);
 * ```
 */
export async function quantize(job: QuantizeJob): Promise<QuantizeOutcome> {
  const { sizeBytes } = job;
  const types = [...new Set(job.types)];
  if (types.length === 0 && sizeBytes === undefined)
    throw new UsageError("nothing is asked for: give --type or --size");
  const wanted = types.length + (sizeBytes === undefined ? 0 : 1);
  if (wanted > 1 && isGguf(job.out)) throw new UsageError(`${wanted} files do not fit in ${job.out}: name a directory`);
  const found = await findModel(job.model, job);
  const stem = job.name === undefined ? nameOf(originOf(found)) : safeFileName(job.name);
  const place = (name: string) => (isGguf(job.out) ? job.out : path.join(job.out, `${stem}-${name}.gguf`));
  const hasData = job.data !== undefined && job.data.length > 0;
  if (sizeBytes !== undefined && !hasData) throw new UsageError("--size needs --data, to measure what each type costs");
  if (job.report === true && !hasData) throw new UsageError("--report needs --data to measure on");
  if (job.run === undefined)
    await checkPlaces(found, [...types, ...(sizeBytes === undefined ? [] : ["mix"])].map(place), job);
  if (!hasData && job.importanceFile === undefined) return { files: await convert(found, types, place, job) };
  if (found.checkpoint === undefined)
    throw new FormatError(
      `${found.reason}. So what its weights matter cannot be measured: give --type alone, without --data, --imatrix, --size and --report`,
    );
  return measured(found, place, job);
}

/** Kinds of files, without measuring anything. */
async function convert(
  found: OpenModel | RunOnlyModel,
  types: readonly FileKind[],
  place: (name: string) => string,
  job: QuantizeJob,
): Promise<QuantizedFile[]> {
  await checkConvertible(found);
  const files: QuantizedFile[] = [];
  for (const kind of types)
    files.push(
      await made(kind, found, () => exportGguf(place(kind), originOf(found), { kind, ...writeOptions(job, kind) })),
    );
  return files;
}

/** Kinds of files and one to a size, by what the weights matter; and what that cost, where it was asked for. */
async function measured(
  opened: OpenModel,
  place: (name: string) => string,
  job: QuantizeJob,
): Promise<QuantizeOutcome> {
  const { types = [], sizeBytes } = job;
  const calibration = await openCalibration(opened, job);
  const importance = await importanceFor(opened, calibration, job);
  const files: QuantizedFile[] = [];
  for (const kind of types)
    files.push(
      await made(kind, opened, () =>
        exportGguf(place(kind), opened.checkpoint, {
          kind,
          ...(importance && { importance }),
          ...writeOptions(job, kind),
        }),
      ),
    );
  if (sizeBytes !== undefined && calibration !== undefined && importance !== undefined)
    files.push(
      await made("mix", opened, () => writeMix(place("mix"), opened, calibration.train, importance, sizeBytes, job)),
    );
  if (job.report !== true || calibration === undefined) return { files };
  return report(opened, files, calibration.validation, job);
}

/** @throws UsageError when a file that is to be made is there, or would lie where the job reads */
async function checkPlaces(found: OpenModel | RunOnlyModel, files: readonly string[], job: QuantizeJob): Promise<void> {
  checkApart(job.out, [
    ...modelInput("the model", originOf(found)),
    ...(await dataInputs(job)),
    ...fileInput("the importances", job.importanceFile),
  ]);
  if (!isGguf(job.out) && existsSync(job.out) && !statSync(job.out).isDirectory())
    throw new UsageError(`${job.out} is a file: --out names a .gguf file or a directory`);
  for (const file of files) checkNewFile(file, job);
  if (job.importanceFile !== undefined) checkKept(job.importanceFile, "--imatrix");
}

interface Calibration {
  readonly train: Sequences;
  readonly validation: Sequences;
}

async function openCalibration({ checkpoint, model }: OpenModel, job: QuantizeJob): Promise<Calibration | undefined> {
  const { data } = job;
  checkLength(job.sequenceLength, model);
  if (data === undefined || data.length === 0) return undefined;
  const { train, validation } = await openData({ directory: checkpoint.directory, model }, { ...job, data }, job);
  const length = job.sequenceLength ?? defaultSequenceLength(model);
  return {
    train: new Sequences(train, Math.min(length, train.length - 1)),
    validation: new Sequences(validation, Math.min(length, validation.length - 1)),
  };
}

const batchSize = (sequences: Sequences): number => Math.max(1, Math.floor(BATCH_TOKENS / sequences.length));

async function withWeights<T>(
  job: JobOptions,
  { checkpoint, model }: OpenModel,
  use: (backend: Backend, weights: ModelWeights) => Promise<T>,
  dtype: FloatDType = checkpoint.bytes > F32_LIMIT_BYTES ? "f16" : "f32",
): Promise<T> {
  return onDevice(job, async (backend) => {
    const weights = loadWeights(backend, model, checkpoint.source, { dtype, trainable: false });
    try {
      return await use(backend, weights);
    } finally {
      weights.free();
    }
  });
}

async function importanceFor(
  opened: OpenModel,
  calibration: Calibration | undefined,
  job: QuantizeJob,
): Promise<Importance | undefined> {
  const { importanceFile } = job;
  const identity = importanceFile === undefined ? undefined : await modelIdentity(opened.checkpoint, job.cacheDir);
  if (importanceFile !== undefined && existsSync(importanceFile))
    return loadImportance(importanceFile, opened.model, identity);
  if (calibration === undefined) return undefined;
  const importance = await withWeights(job, opened, (backend, weights) =>
    measureImportance(backend, weights, calibration.train, {
      samples: job.samples ?? DEFAULT_SAMPLES,
      batchSize: batchSize(calibration.train),
      computeType: "f32",
      onProgress: (done, total) => job.onProgress?.({ stage: "importance", done, total, unit: "sequences" }),
    }),
  );
  if (importanceFile !== undefined) saveImportance(importanceFile, importance, identity);
  return importance;
}

/** Runs one of the writers and tells of the result. */
async function made(
  name: string,
  { parameters }: Pick<OpenModel, "parameters">,
  write: () => Promise<WrittenModel>,
): Promise<QuantizedFile> {
  const started = performance.now();
  const written = await write();
  const seconds = (performance.now() - started) / 1000;
  const counts: Record<string, number> = {};
  for (const { dtype } of openGguf(written.files[0] ?? "").tensors.values()) counts[dtype] = (counts[dtype] ?? 0) + 1;
  const fileBytes = written.files.reduce((sum, file) => sum + statSync(file).size, 0);
  return { ...written, name, fileBytes, bitsPerWeight: (8 * written.bytes) / parameters, seconds, types: counts };
}

async function writeMix(
  file: string,
  opened: OpenModel,
  sequences: Sequences,
  importance: Importance,
  sizeBytes: number,
  job: QuantizeJob,
): Promise<WrittenModel> {
  const { checkpoint } = opened;
  const { probe = false, candidateTypes, sensitivitySamples: samples = DEFAULT_SENSITIVITY_SAMPLES } = job;
  const measured = { probe, candidateTypes, samples, length: sequences.length, data: sequences.stream.id };
  const key = hashBytes(JSON.stringify([identityOf(checkpoint), measured])).slice(0, 32);
  const sensitivity = await withWeights(job, opened, (backend, weights) =>
    measureSensitivity(backend, weights, checkpoint.source, sequences, {
      ...{ importance, samples, computeType: "f32", probe, batchSize: batchSize(sequences) },
      file: path.join(cacheDirectory(job.cacheDir), "type-costs", `${key}.json`),
      ...(candidateTypes && { types: candidateTypes }),
      ...(job.signal && { signal: job.signal }),
      onProgress: (done, total, detail) =>
        job.onProgress?.({ stage: "cost of each type", done, total, unit: "tensors", detail }),
    }),
  );
  return exportToSize(file, checkpoint, sensitivity, { importance, sizeBytes, ...writeOptions(job, "mix") });
}

/** Measures the model as it was and every file: loss on the validation data, divergence, speed. */
async function report(
  opened: OpenModel,
  files: readonly QuantizedFile[],
  validation: Sequences,
  job: QuantizeJob,
): Promise<QuantizeOutcome> {
  const losses = await withWeights(job, opened, async (backend, reference) => {
    const meter = await DivergenceMeter.prepare(backend, reference, validation, {
      ...{ samples: REPORT_SAMPLES, batchSize: batchSize(validation), computeType: "f32" },
    });
    const lossOf = async (weights: ModelWeights) => {
      const { stream, length: sequenceLength } = validation;
      const { loss } = await perplexity(backend, weights.model, weights, stream, { sequenceLength });
      return { loss, perplexity: Math.exp(loss) };
    };
    try {
      const measured = [{ ...(await lossOf(reference)), divergence: 0 }];
      for (const { files: names } of files) {
        const { model, source } = openCheckpoint(names[0] ?? "");
        const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
        const variant = meter.of(weights);
        try {
          measured.push({ divergence: await variant.measure(), ...(await lossOf(weights)) });
        } finally {
          variant.free();
          weights.free();
        }
        const [done, total] = [measured.length - 1, files.length];
        job.onProgress?.({ stage: "perplexity", done, total, unit: "files" });
      }
      return measured;
    } finally {
      meter.free();
    }
  });
  const speeds: Awaited<ReturnType<typeof speedOf>>[] = [];
  for (const name of [await runnableGguf(job.model, job), ...files.map((file) => file.files[0] ?? "")]) {
    speeds.push(await speedOf(name, job));
    job.onProgress?.({ stage: "speed", done: speeds.length, total: files.length + 1, unit: "files" });
  }
  const of = (i: number) => ({ ...losses[i], ...speeds[i] }) as FileReport;
  return {
    original: { ...of(0), fileBytes: opened.checkpoint.bytes },
    files: files.map((file, i) => ({ ...file, report: of(i + 1) })),
  };
}

async function speedOf(
  file: string,
  { device, threads }: JobOptions,
): Promise<Pick<FileReport, "promptTokensPerSecond" | "generationTokensPerSecond">> {
  const engine = await Engine.open(file, { ...(device && { device }), threads });
  try {
    const { prompt, generation } = await engine.speed(SPEED_PROMPT, SPEED_GENERATED);
    return { promptTokensPerSecond: prompt, generationTokensPerSecond: generation };
  } finally {
    await engine.dispose();
  }
}
