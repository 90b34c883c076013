import { existsSync, rmSync, statSync } from "node:fs";
import path from "node:path";
import { loadVectors, saveVectors } from "../checkpoint/vectors.js";
import { Sequences } from "../data/index.js";
import { defaultSequenceLength } from "../evaluate/index.js";
import { type Passage, passageOf } from "../evaluate/residual-stream.js";
import { SavedStreams } from "../evaluate/saved-streams.js";
import { type Model, shapeOf, sizeOf } from "../models/index.js";
import {
  keptIndices,
  type PrunedModel,
  type PrunePlan,
  type Reranking,
  type Scores,
  type SurgeonOptions,
  type SurgeonProgress,
  scoredBySteps,
  surgeonScores,
} from "../prune/index.js";
import { prepareCut, type RefitOptions, refitCut, whyNotRotated } from "../refit/index.js";
import type { StartMethod } from "../refit/start-methods.js";
import { CoppiceError, FormatError, InterruptedError, UsageError } from "../system/errors.js";
import { freeBytes, hashBytes } from "../system/files.js";
import { formatBytes } from "../system/format.js";
import { scratchDirectory } from "../system/scratch.js";
import { statesBytes } from "./model-memory.js";
import type { SearchInputs } from "./search-inputs.js";
import { canShare, sharedRefit, sharedStatistics } from "./shared/start.js";
import type { TargetOptions } from "./target.js";

/** Sequences that a cut is refitted on by default, and their length at most: about 50 thousand tokens. */
export const DEFAULT_REFIT_SAMPLES = 192;
const SEQUENCE_LENGTH = 256;
const BATCH_TOKENS = 2048;

/** What a refitted start needs to know of the original beside the scores of {@link surgeonScores}. */
export interface StartStatistics {
  readonly scores: Scores;
  /** Second moments of the normalized residual stream, row by row. */
  readonly streamMoments: Float32Array;
}

/**
 * Checks what a start is asked for, before anything that takes long.
 * @param start the method, the command's default filled in
 * @throws UsageError for settings that it would not use, or cannot
 */
export function checkStart({ refitSamples }: TargetOptions, start: StartMethod): void {
  if (refitSamples === undefined) return;
  if (start !== "refit") throw new UsageError("--refit-samples is for --start refit: a plain cut has nothing to refit");
  if (!Number.isInteger(refitSamples) || refitSamples < 1)
    throw new UsageError(`--refit-samples ${refitSamples}: give a whole number from 1 on`);
}

/** A model, and data to calibrate on. */
export type StartInputs = Pick<SearchInputs, "backend" | "original" | "tokens" | "computeType" | "options">;

/** Calibration data for statistics and refit. @param samples at most so many sequences */
export function passageFor({ backend, original, tokens, computeType, options }: StartInputs, samples: number): Passage {
  const { model } = original;
  const length = Math.min(SEQUENCE_LENGTH, defaultSequenceLength(model), Math.max(1, tokens.length - 1));
  return passageOf(backend, new Sequences(tokens, length), model.vocabSize, {
    computeType,
    samples,
    batchSize: Math.max(1, Math.floor(BATCH_TOKENS / length)),
    memoryBytes: statesBytes(options),
    signal: options.ranks === undefined ? options.signal : undefined, // processes stop together, or not at all
  });
}

/** Sequences that a cut is refitted on. */
export const refitSamplesOf = ({ options }: StartInputs): number => options.refitSamples ?? DEFAULT_REFIT_SAMPLES;

/** Names of tensors in the file beside the scores. */
const STREAM = "streamMoments";
const STEPS = "steps";

/**
 * Scores neurons and heads by optimal brain surgeon, or reads what was found before.
 * @param place the path of a file of the run, by its name; without it nothing is kept
 */
export async function startStatistics(inputs: StartInputs, place?: (name: string) => string): Promise<StartStatistics> {
  const { original, options } = inputs;
  const file = place?.("statistics.safetensors");
  if (file !== undefined && existsSync(file)) return readStatistics(file, original.model);
  noteData(inputs);
  const partial = place?.("statistics-so-far.safetensors");
  const savedStreams = place && new SavedStreams(place("statistics-streams.safetensors"));
  const save = (to: string, { scores, streamMoments }: StartStatistics, steps: number) =>
    saveVectors(
      to,
      new Map([...scores, [STREAM, streamMoments], [STEPS, Float32Array.of(steps)]]),
      "coppice start statistics",
      undefined,
    );
  const total = original.model.steps.length;
  const passage = passageFor(inputs, refitSamplesOf(inputs));
  const { ranks } = options;
  const surgeonOptions: SurgeonOptions = {
    known: partial !== undefined && existsSync(partial) ? readStatistics(partial, original.model) : undefined,
    savedStreams,
    onStep: (progress) => {
      if (partial !== undefined) save(partial, progress, progress.steps);
      options.onProgress?.({ stage: "statistics", done: progress.steps, total, unit: "steps" });
    },
  };
  const { scores, streamMoments } = canShare(ranks, passage)
    ? await sharedStatistics({ ranks, passage, original, options }, surgeonOptions)
    : await surgeonScores(passage, original, surgeonOptions);
  const statistics = { scores, streamMoments: streamMoments.data };
  if (file !== undefined) save(file, statistics, total);
  if (partial !== undefined) rmSync(partial, { force: true });
  savedStreams?.delete();
  return statistics;
}

/** Less is not worth a word. */
const NOTED_BYTES = 2 ** 30;

/** With fewer tokens than so many times the inputs of a matrix a refit may lose more than a plain cut. */
const TOKENS_AN_INPUT = 4;

/** Says beforehand what a refitted start takes, where that is much, and where it has too little data. */
function noteData(inputs: StartInputs): void {
  const { model } = inputs.original;
  const { layout, batches } = passageFor(inputs, refitSamplesOf(inputs));
  const widest = Math.max(...model.steps.map(({ writer }) => shapeOf(writer, model.sizes)[1] ?? 0));
  const matrix = widest ** 2 * Float32Array.BYTES_PER_ELEMENT;
  const tokens = batches.length * layout.batch * layout.seq;
  const states = 3 * tokens * sizeOf("hidden", model.sizes) * Float32Array.BYTES_PER_ELEMENT;
  if (tokens < TOKENS_AN_INPUT * widest)
    inputs.options.onNote?.(
      `the start is refitted on ${tokens} tokens, which is little for matrices of ${widest} inputs: give more data or --refit-samples, or --start minitron`,
    );
  if (matrix + states >= NOTED_BYTES)
    inputs.options.onNote?.(
      `statistics and refit take about ${formatBytes(matrix)} for one layer's second moments and ${formatBytes(states)} for hidden states of ${tokens} tokens, ` +
        "on disk where they do not fit in memory: --refit-samples takes fewer",
    );
}

function readStatistics(file: string, model: Model): SurgeonProgress {
  const hidden = sizeOf("hidden", model.sizes);
  const read = (lengths: Iterable<readonly [name: string, length: number]>) =>
    loadVectors(file, lengths, "statistics", undefined);
  const steps = read([[STEPS, 1]]).get(STEPS)?.[0] ?? 0;
  const scores = read(scoredBySteps(model, steps).map((dimension) => [dimension, sizeOf(dimension, model.sizes)]));
  const streamMoments = read([[STREAM, hidden ** 2]]).get(STREAM) ?? new Float32Array();
  return { steps, scores, streamMoments };
}

/** Names a cut, refitted on so many sequences, or with 0 as it is. */
export const planId = (plan: PrunePlan, samples: number): string =>
  hashBytes(JSON.stringify([plan.sizes, plan.keptLayers, samples])).slice(0, 12);

export interface RefittedStart {
  readonly plan: PrunePlan;
  /** Of the calibration, for what the statistics do not score. */
  readonly scores: Scores;
  readonly statistics: StartStatistics;
  /** At most so many sequences: fewer than the job's are enough to rank candidates. */
  readonly samples?: number | undefined;
  /** The path of a file for finished parts, by its name. */
  readonly place: (name: string) => string;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Cuts a model and mends the cut in closed form; what was finished before is read from its files. The same cut on as many sequences has
 * the same files, whether as a candidate or as what was chosen.
 */
export async function refittedStart(inputs: StartInputs, start: RefittedStart): Promise<PrunedModel> {
  const { original, options } = inputs;
  const { model } = original;
  const { plan, scores, statistics, place, onProgress } = start;
  const samples = Math.min(start.samples ?? Number.POSITIVE_INFINITY, refitSamplesOf(inputs));
  const id = planId(plan, samples);
  const hidden = sizeOf("hidden", model.sizes);
  const passage = passageFor(inputs, samples);
  onProgress?.(0, model.steps.length + 1);
  const cut = await prepareCut({
    passage,
    original,
    plan,
    kept: keptIndices(model, plan, new Map([...scores, ...statistics.scores])),
    streamMoments: { rows: hidden, columns: hidden, data: statistics.streamMoments },
  });
  const refitOptions: RefitOptions = { place: (name) => place(`${id}-${name}`), onProgress };
  const { ranks } = options;
  return canShare(ranks, passage)
    ? sharedRefit({ ranks, passage, original, options }, cut, refitOptions)
    : refitCut(cut, passage, refitOptions);
}

type Measure = Reranking["measure"];

/** What a candidate lost after its refit. */
interface MeasuredRefit {
  readonly loss: number;
  /** The names of the refit's files. */
  readonly names: readonly string[];
}

/** How a candidate is measured. */
interface RefitMeasurement {
  readonly samples: number;
  /** What is measured: only losses of the same kind are compared. */
  readonly measure: Measure;
}

/** A candidate's refit on disk. */
interface KeptRefit {
  readonly plan: PrunePlan;
  readonly measure: Measure;
  readonly loss: number;
  readonly files: ReadonlySet<string>;
}

/**
 * Refits candidates to measure them. Files are deleted after that, but for those of the best candidate that was refitted on all sequences:
 * the start is made of them. Those of a run that was killed are found again by it, and so are its losses.
 */
export class CandidateRefits {
  private kept: KeptRefit | undefined;

  constructor(
    private readonly inputs: StartInputs & Pick<SearchInputs, "place" | "known">,
    private readonly start: Omit<RefittedStart, "plan" | "samples" | "place">,
  ) {}

  async measure(
    plan: PrunePlan,
    how: RefitMeasurement,
    lossOf: (cut: PrunedModel) => Promise<number>,
  ): Promise<number> {
    const { known, place } = this.inputs;
    if (known === undefined || place === undefined) return this.measureInScratch(plan, how, lossOf);
    const key = [how.measure, planId(plan, how.samples)];
    const { loss, names } = await known.once<MeasuredRefit>(key, async () => {
      const placed = new Set<string>();
      const own = (name: string): string => {
        placed.add(name);
        return place(name);
      };
      const cut = await this.refitted({ ...this.start, plan, samples: how.samples, place: own });
      return { loss: await lossOf(cut), names: [...placed] };
    });
    this.keepIfBest({ plan, measure: how.measure, loss, files: new Set(names.map(place)) }, how.samples);
    return loss;
  }

  private async measureInScratch(
    plan: PrunePlan,
    { samples }: RefitMeasurement,
    lossOf: (cut: PrunedModel) => Promise<number>,
  ): Promise<number> {
    const scratch = scratchDirectory("refit");
    const place = (name: string) => path.join(scratch, name);
    try {
      return await lossOf(await this.refitted({ ...this.start, plan, samples, place }));
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  }

  private keepIfBest(refit: KeptRefit, samples: number): void {
    const canBeStart = samples >= refitSamplesOf(this.inputs);
    if (canBeStart && isBest(refit, this.kept) && roomForAnother(refit.files)) this.keep(refit);
    else deleteAll([...refit.files].filter((file) => this.kept?.files.has(file) !== true));
  }

  /** Without the files that are kept where the disk has no room beside them; not where other ranks are left in the middle of it. */
  private async refitted(start: RefittedStart): Promise<PrunedModel> {
    try {
      return await refittedStart(this.inputs, start);
    } catch (error) {
      const isBusy = this.inputs.options.ranks?.busy === true;
      const isStop = error instanceof InterruptedError || error instanceof FormatError;
      if (this.kept === undefined || isBusy || isStop || !(error instanceof CoppiceError)) throw error;
      this.keep(undefined);
      return refittedStart(this.inputs, start);
    }
  }

  /** Deletes what another plan has left. */
  keepOnly(plan: PrunePlan | undefined): void {
    if (this.kept !== undefined && this.kept.plan !== plan) this.keep(undefined);
  }

  private keep(refit: KeptRefit | undefined): void {
    deleteAll([...(this.kept?.files ?? [])].filter((file) => refit?.files.has(file) !== true));
    this.kept = refit;
  }
}

/** Measures of candidates, each of those that the one before left. */
const MEASURES: readonly Measure[] = ["refittedLoss", "distilledLoss"];

function isBest({ loss, measure }: KeptRefit, kept: KeptRefit | undefined): boolean {
  if (kept === undefined) return true;
  const later = MEASURES.indexOf(measure) - MEASURES.indexOf(kept.measure);
  return later > 0 || (later === 0 && loss < kept.loss);
}

/** Whether the disk takes as much again, for the next candidate. */
function roomForAnother(files: ReadonlySet<string>): boolean {
  const existing = [...files].filter((file) => existsSync(file));
  const bytes = existing.reduce((sum, file) => sum + statSync(file).size, 0);
  const [first] = existing;
  return first !== undefined && (freeBytes(first) ?? 0) > bytes;
}

function deleteAll(files: Iterable<string>): void {
  for (const file of files) rmSync(file, { force: true });
}

/** Says where a model's residual stream cannot be rotated, though its width is to be cut. */
export function noteSelection({ original, options }: Pick<StartInputs, "original" | "options">, plan: PrunePlan): void {
  const { model } = original;
  const width = sizeOf("hidden", plan.sizes);
  const reason = width < sizeOf("hidden", model.sizes) ? whyNotRotated(original, width) : undefined;
  if (reason !== undefined)
    options.onNote?.(
      `the width is cut by leaving channels out, not by rotating the model first: ${reason}. Cutting other sizes (--axes ffn) may lose less.`,
    );
}
