import { existsSync, statSync } from "node:fs";
import path from "node:path";
import { isGguf, openGguf } from "../checkpoint/index.js";
import { floatSource } from "../checkpoint/tensor-source.js";
import { Sequences } from "../data/index.js";
import { DivergenceMeter } from "../evaluate/divergence.js";
import { defaultSequenceLength, perplexity } from "../evaluate/index.js";
import { Engine } from "../generate/index.js";
import type { Backend, FloatDType, QuantizedDType } from "../ggml/index.js";
import { loadWeights, type ModelWeights, openCheckpoint, openWeights, wholeWeights } from "../models/index.js";
import {
  checkSize,
  exportGguf,
  exportToSize,
  type FileKind,
  type Importance,
  importanceIdentity,
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
  checkConvertible,
  exportOptions,
  fileIdentity,
  type GgufFileOptions,
  originOf,
  runnableGguf,
} from "./export.js";
import { dataInputs, fileInput, modelIdentity, modelInput } from "./inputs.js";
import { type JobOptions, onDevice } from "./job.js";
import { weightsFor } from "./model-memory.js";
import { type DataOptions, openData } from "./open-data.js";
import { findModel, type OpenModel, type RunOnlyModel } from "./open-model.js";
import { checkCacheFile, checkDirectoryName, checkNewFile, type OverwriteOptions } from "./output.js";
import { checkLength } from "./sanity.js";

export interface QuantizeJob extends JobOptions, OverwriteOptions, Partial<DataOptions>, GgufFileOptions {
  readonly model: string;
  /** A .gguf file for a single result, else a directory. */
  readonly out: string;
  /** Kinds of files to write. */
  readonly types?: readonly FileKind[] | undefined;
  /** Write a file of at most this size, with the mix of types that is expected to lose least. */
  readonly sizeBytes?: number | undefined;
  /** Types for the mix to choose from. */
  readonly candidateTypes?: readonly QuantizedDType[] | undefined;
  /** Measure one type of each tensor, and estimate the others from it. */
  readonly probe?: boolean | undefined;
  /** A file with importances to use, or to write them to. */
  readonly importanceFile?: string | undefined;
  /** Sequences to measure importances on; 128 by default. */
  readonly samples?: number | undefined;
  /** Sequences to measure the cost of each type on; 16 by default. */
  readonly sensitivitySamples?: number | undefined;
  readonly sequenceLength?: number | undefined;
  /** Measure size, loss and speed of every file. */
  readonly report?: boolean | undefined;
}

/** The measurements of a file for `--report`. */
export interface FileReport {
  readonly loss: number;
  readonly perplexity: number;
  /** Mean divergence of its predictions from the unquantized model's, in nats per token. */
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
  /** The number of tensors of each type. */
  readonly types: Readonly<Record<string, number>>;
  readonly report?: FileReport | undefined;
}

export interface QuantizeOutcome {
  /** The unquantized model, if a report was requested. */
  readonly original?: (FileReport & { readonly fileBytes: number }) | undefined;
  readonly files: readonly QuantizedFile[];
}

const DEFAULT_SAMPLES = 128;
const DEFAULT_SENSITIVITY_SAMPLES = 16;
/** About how many tokens to compute at once. */
const BATCH_TOKENS = 2048;
/** Sequences to measure the report's divergence on. */
const REPORT_SAMPLES = 64;
const [SPEED_PROMPT, SPEED_GENERATED] = [256, 64];
/** Models of up to so many bytes in 16 bits are loaded in f32, larger ones in f16, however they are stored. */
const F32_LIMIT_BYTES = 4e9;

/** The name of the file with a mix of types, among those of kinds. */
const MIX = "mix";

/**
 * Quantizes a model to kinds of files, to a size, or both.
 * @throws UsageError for options that do not go together, and for places that cannot be written
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
  const names = sizeBytes === undefined ? types : [...types, MIX];
  const hasData = job.data !== undefined && job.data.length > 0;
  checkOptions(job, names.length, hasData);
  const found = await findModel(job.model, job);
  const stem = job.name === undefined ? nameOf(originOf(found)) : safeFileName(job.name);
  const place = (name: string) => (isGguf(job.out) ? job.out : path.join(job.out, `${stem}-${name}.gguf`));
  if (job.run === undefined) await checkPlaces(found, names.map(place), job);
  if (!hasData && job.importanceFile === undefined) return { files: await convert(found, types, place, job) };
  if (found.checkpoint === undefined)
    throw new FormatError(
      `${found.reason}. Its importances cannot be measured either: give --type alone, without --data, --imatrix, --size and --report`,
    );
  if (!hasData && job.importanceFile !== undefined && !existsSync(job.importanceFile))
    throw new UsageError(`${job.importanceFile} does not exist, and without --data no importances can be measured`);
  return convertWithImportance(found, types, place, job);
}

function checkOptions(
  { out, sizeBytes, report, importanceFile, samples, sequenceLength, validation }: QuantizeJob,
  fileCount: number,
  hasData: boolean,
): void {
  if (fileCount === 0) throw new UsageError("there is nothing to do: give --type or --size");
  if (fileCount > 1 && isGguf(out)) throw new UsageError(`${fileCount} files do not fit in ${out}: name a directory`);
  if (sizeBytes !== undefined && !hasData) throw new UsageError("--size needs --data, to measure what each type costs");
  if (report === true && !hasData) throw new UsageError("--report needs --data to measure on");
  if (
    !hasData &&
    importanceFile === undefined &&
    [samples, sequenceLength, validation].some((option) => option !== undefined)
  )
    throw new UsageError(
      "--samples, --sequence-length and --validation are for --data: without it nothing is measured",
    );
}

/** Writes kinds of files without measuring anything. */
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
      await describeFile(kind, found, () =>
        exportGguf(place(kind), originOf(found), { kind, ...exportOptions(job, kind, originOf(found)) }),
      ),
    );
  return files;
}

/** Writes kinds of files, and a mix for a size, using importances; measures the files if a report is requested. */
async function convertWithImportance(
  opened: OpenModel,
  types: readonly FileKind[],
  place: (name: string) => string,
  job: QuantizeJob,
): Promise<QuantizeOutcome> {
  const { sizeBytes } = job;
  await checkConvertible(opened);
  const readFrom = opened.file?.metadata;
  if (sizeBytes !== undefined)
    checkSize(opened.checkpoint, job.candidateTypes, {
      sizeBytes,
      readFrom,
      ...exportOptions(job, MIX, opened.checkpoint),
    });
  const calibration = await openCalibration(opened, job);
  const importance = await importanceFor(opened, calibration, job);
  const files: QuantizedFile[] = [];
  for (const kind of types)
    files.push(
      await describeFile(kind, opened, () =>
        exportGguf(place(kind), opened.checkpoint, {
          kind,
          importance,
          readFrom,
          ...exportOptions(job, kind, opened.checkpoint),
        }),
      ),
    );
  if (sizeBytes !== undefined && calibration !== undefined && importance !== undefined) {
    const mix = { opened, sequences: calibration.train, importance, sizeBytes };
    files.push(await describeFile(MIX, opened, () => writeMix(place(MIX), mix, job)));
  }
  if (job.report !== true || calibration === undefined) return { files };
  return reportOn(opened, files, calibration.validation, job);
}

/** @throws UsageError when a file that would be written exists, or would lie inside one of the job's inputs */
async function checkPlaces(found: OpenModel | RunOnlyModel, files: readonly string[], job: QuantizeJob): Promise<void> {
  checkApart(job.out, [
    ...modelInput("the model", originOf(found)),
    ...(await dataInputs(job)),
    ...fileInput("the importances", job.importanceFile),
  ]);
  if (!isGguf(job.out)) {
    checkDirectoryName(job.out);
    if (existsSync(job.out) && !statSync(job.out).isDirectory())
      throw new UsageError(`${job.out} is a file: --out names a .gguf file or a directory`);
  }
  for (const file of files) checkNewFile(file, job);
  if (job.importanceFile !== undefined) checkCacheFile(job.importanceFile, "--imatrix");
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

/** The type in which a model's matrices are measured. */
const typeFor = ({ parameters }: OpenModel): FloatDType => (2 * parameters > F32_LIMIT_BYTES ? "f16" : "f32");

async function withWeights<T>(
  job: JobOptions,
  opened: OpenModel,
  use: (backend: Backend, weights: ModelWeights) => Promise<T>,
  dtype: FloatDType = typeFor(opened),
): Promise<T> {
  return onDevice(job, async (backend) => {
    const weights = wholeWeights(
      openWeights(backend, opened.checkpoint, { dtype, memoryBytes: job.memoryBytes }),
      "measuring types and files",
    );
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
  if (importanceFile !== undefined && existsSync(importanceFile)) {
    if (job.data !== undefined || job.samples !== undefined)
      job.onNote?.(`${importanceFile} has importances already: --data and --samples change nothing of them`);
    return loadImportance(importanceFile, opened.model, identity);
  }
  if (calibration === undefined) return undefined;
  const importance = await onDevice(job, async (backend) => {
    const weights = weightsFor(backend, opened.checkpoint, typeFor(opened), job);
    try {
      return await measureImportance(backend, weights, calibration.train, {
        samples: job.samples ?? DEFAULT_SAMPLES,
        batchSize: batchSize(calibration.train),
        computeType: "f32",
        signal: job.signal,
        onProgress: (done, total) => job.onProgress?.({ stage: "importance", done, total, unit: "sequences" }),
      });
    } finally {
      weights.free();
    }
  });
  if (importanceFile !== undefined) saveImportance(importanceFile, importance, identity);
  return importance;
}

/** Writes a file, and describes it. */
async function describeFile(
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

/** What a mix of types for a size is made from. */
interface MixInputs {
  readonly opened: OpenModel;
  readonly sequences: Sequences;
  readonly importance: Importance;
  readonly sizeBytes: number;
}

/** Part of a measurement's key: another way to measure is another one. */
const COSTS_FORMAT = 3;

async function writeMix(file: string, inputs: MixInputs, job: QuantizeJob): Promise<WrittenModel> {
  const { opened, sequences, importance, sizeBytes } = inputs;
  const { checkpoint } = opened;
  const { probe = false, candidateTypes, sensitivitySamples: samples = DEFAULT_SENSITIVITY_SAMPLES } = job;
  const measurement = {
    probe,
    candidateTypes,
    samples,
    length: sequences.length,
    data: sequences.stream.id,
    importance: importanceIdentity(importance),
  };
  const key = hashBytes(JSON.stringify([COSTS_FORMAT, fileIdentity(checkpoint), measurement])).slice(0, 32);
  // types are tried on values: those of a quantized checkpoint are expanded
  const source = floatSource(checkpoint.source);
  const whole = { ...opened, checkpoint: { ...checkpoint, source } };
  const sensitivity = await withWeights(job, whole, (backend, weights) =>
    measureSensitivity(backend, weights, source, sequences, {
      importance,
      samples,
      computeType: "f32",
      probe,
      batchSize: batchSize(sequences),
      file: path.join(cacheDirectory(job.cacheDir), "type-costs", `${key}.json`),
      types: candidateTypes,
      signal: job.signal,
      onProgress: (done, total, detail) =>
        job.onProgress?.({ stage: "cost of each type", done, total, unit: "tensors", detail }),
    }),
  );
  return exportToSize(file, checkpoint, sensitivity, {
    importance,
    sizeBytes,
    readFrom: opened.file?.metadata,
    ...exportOptions(job, MIX, opened.checkpoint),
  });
}

type Quality = Pick<FileReport, "loss" | "perplexity" | "divergence">;
type Speed = Pick<FileReport, "promptTokensPerSecond" | "generationTokensPerSecond">;

/** Measures the unquantized model and every file: loss and divergence on the validation data, and speed. */
async function reportOn(
  opened: OpenModel,
  files: readonly QuantizedFile[],
  validation: Sequences,
  job: QuantizeJob,
): Promise<QuantizeOutcome> {
  const [originalQuality, qualities] = await measureQualities(opened, files, validation, job);
  const speedOf = async (file: string, done: number): Promise<Speed> => {
    const speed = await measureSpeed(file, job);
    job.onProgress?.({ stage: "speed", done, total: files.length + 1, unit: "files" });
    return speed;
  };
  const originalSpeed = await speedOf(await runnableGguf(job.model, job), 1);
  const reported: QuantizedFile[] = [];
  for (const [i, file] of files.entries()) {
    const speed = await speedOf(file.files[0] ?? "", i + 2);
    reported.push({ ...file, report: { ...(qualities[i] as Quality), ...speed } });
  }
  const fileBytes = opened.checkpoint.bytes;
  return { original: { ...originalQuality, ...originalSpeed, fileBytes }, files: reported };
}

/** Measures the loss and the divergence of the unquantized model, and of every file. */
function measureQualities(
  opened: OpenModel,
  files: readonly QuantizedFile[],
  validation: Sequences,
  job: QuantizeJob,
): Promise<readonly [original: Quality, files: readonly Quality[]]> {
  return withWeights(job, opened, async (backend, reference) => {
    const meter = await DivergenceMeter.prepare(backend, reference, validation, {
      samples: REPORT_SAMPLES,
      batchSize: batchSize(validation),
      computeType: "f32",
    });
    const lossOf = async (weights: ModelWeights) => {
      const { stream, length: sequenceLength } = validation;
      const { loss } = await perplexity(backend, weights, stream, { sequenceLength });
      return { loss, perplexity: Math.exp(loss) };
    };
    try {
      const original = { ...(await lossOf(reference)), divergence: 0 };
      const qualities: Quality[] = [];
      for (const { files: names } of files) {
        const { model, source } = openCheckpoint(names[0] ?? "");
        // as they are where they are deployed
        const weights = loadWeights(backend, model, source, { dtype: "f32", keepsQuantized: true, trainable: false });
        const variant = meter.of(weights);
        try {
          qualities.push({ divergence: await variant.measure(), ...(await lossOf(weights)) });
        } finally {
          variant.free();
          weights.free();
        }
        job.onProgress?.({ stage: "perplexity", done: qualities.length, total: files.length, unit: "files" });
      }
      return [original, qualities];
    } finally {
      meter.free();
    }
  });
}

async function measureSpeed(file: string, { device, threads }: JobOptions): Promise<Speed> {
  const engine = await Engine.open(file, { device, threads });
  try {
    const { prompt, generation } = await engine.speed(SPEED_PROMPT, SPEED_GENERATED);
    return { promptTokensPerSecond: prompt, generationTokensPerSecond: generation };
  } finally {
    await engine.dispose();
  }
}
