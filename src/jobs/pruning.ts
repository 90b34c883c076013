import { existsSync } from "node:fs";
import { Sequences, type TokenStream } from "../data/index.js";
import { isDevice } from "../devices/index.js";
import { defaultSequenceLength } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import {
  type Checkpoint,
  countParameters,
  loadWeights,
  type Model,
  type ModelTensors,
  type ModelWeights,
} from "../models/index.js";
import {
  type AxisSize,
  type AxisSizes,
  axisSizes,
  type Candidate,
  calibrate,
  type DepthMethod,
  describeSizes,
  enumerateCandidates,
  keptIndices,
  largestOf,
  layerOrder,
  loadScores,
  type PrunedModel,
  type PrunePlan,
  parametersAt,
  parseTarget,
  planFor,
  prune,
  type RankedCandidate,
  rankCandidates,
  type Scores,
  type SearchSpace,
  saveScores,
} from "../prune/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { ComputeType } from "../tensor/index.js";
import { fitFor, modelOnly } from "./device-plan.js";
import {
  type DataOptions,
  type JobOptions,
  type OpenModel,
  onDevice,
  openData,
  openModel,
  writeDirectory,
} from "./environment.js";
import {
  checkKept,
  claim,
  dataIdentity,
  dataInputs,
  inRun,
  modelIdentity,
  modelInput,
  outside,
  ownInside,
  type RunJob,
  scoresIdentity,
} from "./output.js";
import { distilBriefly, trainOptionsFor } from "./training.js";

/** What the smaller model should be, and how it is looked for. */
export interface TargetOptions {
  /** `8.4B`, `0.67x`, `4GiB`, `hidden=4096,ffn=11520` or a device's id. */
  readonly target: string;
  /** For a target in bytes; 16 by default. */
  readonly bitsPerWeight?: number;
  /** Which sizes may change; the widths `hidden` and `ffn` by default, which keep more quality than depth. */
  readonly space?: Partial<SearchSpace>;
  /** How layers to cut are chosen; the contiguous run that costs least loss by default. */
  readonly depthMethod?: DepthMethod;
  /** Candidates that are measured at most. */
  readonly maxCandidates?: number;
  /** Rank the best candidates again after distilling each on so many tokens. */
  readonly searchTokens?: number;
  /** Sequences of calibration data. */
  readonly calibrationSamples?: number;
  /** Scores to use instead of a calibration, or where to keep those of this one. */
  readonly scoresFile?: string;
}

const DEFAULT_AXES: readonly string[] = ["hidden", "ffn"];

/** Where sizes are looked for: the widths that the model lets be cut, where nothing else is said. */
const spaceOf = (model: Model, { space }: TargetOptions): SearchSpace => ({
  axes: DEFAULT_AXES.filter((axis) => model.axes.some(({ name }) => name === axis)),
  ...space,
});

const DEFAULT_BITS = 16;
const DEFAULT_MAX_CANDIDATES = 12;
const DEFAULT_CALIBRATION_SAMPLES = 1024;
/** Sequences that candidates are measured on. */
const SEARCH_SEQUENCES = 64;
const CALIBRATION_BATCH_TOKENS = 2048;

/** The architectures that meet a target: one when it names sizes, else all within the tolerance. */
export function candidatesFor(model: Model, options: TargetOptions): Candidate[] {
  if (isDevice(options.target)) {
    const { sizes, parameters, share } = fitFor(model, options.target, options.space);
    return share === 1 ? [{ sizes, parameters }] : enumerateCandidates(model, parameters, spaceOf(model, options));
  }
  const target = parseTarget(options.target, model, options.bitsPerWeight ?? DEFAULT_BITS);
  if (target.kind === "sizes") return [{ sizes: target.sizes, parameters: parametersAt(model, target.sizes) }];
  return enumerateCandidates(model, target.parameters, spaceOf(model, options));
}

/** Calibrates, or reads the scores of an earlier calibration. @param identity what the model contains */
export async function scoresFor(
  backend: Backend,
  weights: ModelWeights,
  tokens: TokenStream,
  options: TargetOptions & JobOptions,
  computeType: ComputeType,
  identity?: string,
): Promise<Scores> {
  const { scoresFile } = options;
  if (scoresFile !== undefined && existsSync(scoresFile))
    return loadScores(backend, scoresFile, weights.model, identity);
  const length = Math.min(defaultSequenceLength(weights.model), Math.max(1, tokens.length - 1));
  const sequences = new Sequences(tokens, length);
  const scores = await calibrate(backend, weights, sequences, {
    samples: options.calibrationSamples ?? DEFAULT_CALIBRATION_SAMPLES,
    batchSize: Math.max(1, Math.floor(CALIBRATION_BATCH_TOKENS / length)),
    computeType,
    onProgress: (done, total) => options.onProgress?.({ stage: "calibrate", done, total, unit: "sequences" }),
  });
  if (scoresFile !== undefined) saveScores(scoresFile, scores, identity);
  return scores;
}

/** What a search works on. */
export interface SearchStage {
  readonly backend: Backend;
  readonly original: ModelTensors;
  readonly weights: ModelWeights;
  readonly scores: Scores;
  readonly validation: TokenStream;
  readonly options: TargetOptions & JobOptions;
  readonly computeType: ComputeType;
  /** Distils a candidate briefly; see `rankCandidates`. */
  readonly distill?: (pruned: PrunedModel) => Promise<number>;
}

/** Ranks the architectures that meet a target, best first. */
export async function search(stage: SearchStage): Promise<RankedCandidate[]> {
  const { backend, original, weights, scores, validation, options, computeType } = stage;
  const { model } = original;
  const candidates = candidatesFor(model, options);
  const depthMethod = options.depthMethod ?? "contiguous-loss";
  const common = {
    depthMethod,
    computeType,
    sequenceLength: Math.min(256, defaultSequenceLength(model)),
    maxSequences: SEARCH_SEQUENCES,
  };
  return rankCandidates(backend, original, weights, candidates, scores, validation, {
    ...common,
    maxCandidates: options.maxCandidates ?? DEFAULT_MAX_CANDIDATES,
    onProgress: (done, total) => options.onProgress?.({ stage: "search", done, total, unit: "candidates" }),
    ...(stage.distill && { distill: stage.distill }),
  });
}

/** How candidates are distilled briefly, where that was asked for. */
function briefDistiller(
  backend: Backend,
  teacher: ModelWeights,
  tokens: TokenStream,
  validation: TokenStream,
  { searchTokens }: TargetOptions,
  computeType: ComputeType,
): Pick<SearchStage, "distill"> {
  if (searchTokens === undefined) return {};
  const settings = trainOptionsFor(teacher.model, { tokens: searchTokens, computeType });
  const sequences = new Sequences(tokens, settings.sequenceLength);
  return { distill: (pruned) => distilBriefly(backend, teacher, pruned, sequences, validation, settings) };
}

export interface PlanJob extends JobOptions, TargetOptions, Partial<DataOptions> {
  readonly model: string;
  readonly computeType?: ComputeType;
}

export interface PlanOutcome {
  readonly parameters: number;
  readonly original: AxisSizes;
  /** Those that were measured, best first; then the others, nearest to the target first. */
  readonly candidates: readonly (Candidate & Partial<Pick<RankedCandidate, "loss" | "distilledLoss">>)[];
}

/** Lists the architectures that meet a target. With data they are measured; without, a config.json is enough. */
export async function plan(job: PlanJob): Promise<PlanOutcome> {
  if (job.data === undefined || job.data.length === 0) {
    const model = await modelOnly(job.model, job);
    return {
      parameters: countParameters(model.parameters, model.sizes),
      original: axisSizes(model),
      candidates: candidatesFor(model, job),
    };
  }
  const { checkpoint, model, parameters } = await openModel(job.model, job);
  candidatesFor(model, job); // a target that cannot be met is said before anything long begins
  const { train, validation } = await openData(
    { directory: checkpoint.directory, model },
    { ...job, data: job.data },
    job,
  );
  const computeType = job.computeType ?? "bf16";
  if (job.scoresFile !== undefined) checkKept(job.scoresFile, "--scores");
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  return onDevice(job, async (backend) => {
    const weights = loadWeights(backend, model, checkpoint.source, { dtype: computeType, trainable: false });
    try {
      const scores = await scoresFor(backend, weights, train, job, computeType, identity);
      const ranked = await search({
        ...{ backend, original: checkpoint, weights, scores, validation, options: job, computeType },
        ...briefDistiller(backend, weights, train, validation, job, computeType),
      });
      const measured = new Set(ranked.map(({ sizes }) => describeSizes(sizes)));
      const others = candidatesFor(model, job).filter(({ sizes }) => !measured.has(describeSizes(sizes)));
      return {
        parameters,
        original: axisSizes(model),
        candidates: [...ranked.map(({ plan: _, ...rest }) => rest), ...others],
      };
    } finally {
      weights.free();
    }
  });
}

export interface PruneJob extends RunJob, TargetOptions, Partial<DataOptions> {
  readonly model: string;
  readonly computeType?: ComputeType;
  readonly shardBytes?: number;
}

export interface PruneOutcome {
  readonly parameters: { readonly from: number; readonly to: number };
  readonly plan: PlanSummary;
  readonly out: string;
}

/** Each size of a plan, before and after. */
export type PlanSummary = Readonly<Record<string, { readonly from: AxisSize; readonly to: AxisSize }>>;

/** Compares the sizes of two models: a number where all layers agree, a list where they differ. */
export function summarisePlan(before: Model, after: Model): PlanSummary {
  const [from, to] = [axisSizes(before), axisSizes(after)];
  return Object.fromEntries(Object.entries(from).map(([axis, size]) => [axis, { from: size, to: to[axis] ?? size }]));
}

/** What a pruning that came to its end leaves for the same command. */
interface Pruned {
  readonly outcome: Omit<PruneOutcome, "out">;
  /** What the file of scores contained. */
  readonly scores: string | null;
}

/** Prunes a model to a target and writes it. */
export async function pruneModel(job: PruneJob): Promise<PruneOutcome> {
  const opened = await openModel(job.model, job);
  const data = await dataInputs(job);
  const inputs = [
    ...modelInput("the model", opened.checkpoint),
    ...data,
    ...outside(job.out, "the scores", job.scoresFile),
  ];
  const candidates = candidatesFor(opened.model, job);
  if (job.scoresFile !== undefined) checkKept(job.scoresFile, "--scores");
  return inRun(job, inputs, async (run) => {
    const { target, bitsPerWeight, space, depthMethod, maxCandidates, searchTokens, calibrationSamples } = job;
    claim(run, job, {
      command: "prune",
      inputs: { model: await modelIdentity(opened.checkpoint, job.cacheDir), data: await dataIdentity(job, data) },
      target,
      bitsPerWeight,
      space,
      depthMethod,
      maxCandidates,
      searchTokens,
      calibrationSamples,
      computeType: job.computeType,
      shardBytes: job.shardBytes,
    });
    const { scoresFile } = job;
    const scores = async () =>
      scoresFile !== undefined && existsSync(scoresFile) ? await scoresIdentity(scoresFile) : null;
    if (run.finished) {
      const before = run.result as Pruned | undefined;
      if (before?.outcome === undefined)
        throw new UsageError(`${job.out} does not say what its pruning came to: --restart prunes again`);
      if (before.scores !== (await scores()))
        throw new UsageError(`${scoresFile} is not what the run in ${job.out} used: --restart prunes again`);
      return { ...before.outcome, out: job.out };
    }
    if (scoresFile !== undefined) ownInside(run, scoresFile);
    const outcome = await pruneInto(job, opened, candidates, (name) => run.own(name));
    run.finish({ outcome, scores: await scores() } satisfies Pruned);
    return { ...outcome, out: job.out };
  });
}

async function pruneInto(
  job: PruneJob,
  { checkpoint, model, parameters }: OpenModel,
  candidates: readonly Candidate[],
  place: (name: string) => string,
): Promise<Omit<PruneOutcome, "out">> {
  const { chosen, scores } = await onDevice(job, (backend) =>
    choose(backend, checkpoint, model, candidates, job, job.computeType ?? "bf16"),
  );
  const pruned = prune(checkpoint, chosen, keptIndices(model, chosen, scores));
  writeDirectory(pruned, checkpoint.directory, { ...job, place }, "prune");
  const to = countParameters(pruned.model.parameters, pruned.model.sizes);
  return { parameters: { from: parameters, to }, plan: summarisePlan(model, pruned.model) };
}

/** Decides what stays. Scores that are at hand and sizes that are named need no data and no weights in memory. */
async function choose(
  backend: Backend,
  checkpoint: Checkpoint,
  model: Model,
  candidates: readonly Candidate[],
  job: PruneJob,
  computeType: ComputeType,
): Promise<{ readonly chosen: PrunePlan; readonly scores: Scores }> {
  const { directory, source } = checkpoint;
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  const only = candidates.length === 1 ? candidates[0] : undefined;
  const layers = only?.sizes.layers === undefined ? model.layerCount : largestOf(only.sizes.layers);
  const stored =
    job.scoresFile !== undefined && existsSync(job.scoresFile)
      ? loadScores(backend, job.scoresFile, model, identity)
      : undefined;
  const byInfluence = only !== undefined && (layers === model.layerCount || job.depthMethod === "block-influence");
  if (stored !== undefined && only !== undefined && byInfluence) {
    const order = [...(stored.get("layers") ?? [])]
      .map((score, layer) => ({ score, layer }))
      .sort((a, b) => a.score - b.score);
    return {
      chosen: planFor(
        model,
        only.sizes,
        order.map(({ layer }) => layer),
      ),
      scores: stored,
    };
  }
  if (job.data === undefined || job.data.length === 0)
    throw new UsageError("pruning needs --data to score what matters, or --scores with explicit sizes");
  const { train, validation } = await openData({ directory, model }, { ...job, data: job.data }, job);
  const weights = loadWeights(backend, model, source, { dtype: computeType, trainable: false });
  try {
    const scores = await scoresFor(backend, weights, train, job, computeType, identity);
    if (only === undefined) {
      const [best] = await search({
        ...{ backend, original: checkpoint, weights, scores, validation, options: job, computeType },
        ...briefDistiller(backend, weights, train, validation, job, computeType),
      });
      if (best === undefined) throw new CoppiceError("no candidate was measured");
      return { chosen: best.plan, scores };
    }
    const order = await layerOrder(backend, weights, validation, scores, model.layerCount - layers, {
      method: job.depthMethod ?? "contiguous-loss",
      computeType,
      sequenceLength: Math.min(256, defaultSequenceLength(model)),
      maxSequences: SEARCH_SEQUENCES,
    });
    return { chosen: planFor(model, only.sizes, order), scores };
  } finally {
    weights.free();
  }
}
