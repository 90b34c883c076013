import { existsSync } from "node:fs";
import { Sequences } from "../data/index.js";
import type { RunDirectory } from "../distill/index.js";
import { defaultSequenceLength } from "../evaluate/index.js";
import { SavedStreams } from "../evaluate/saved-streams.js";
import { bytesOf } from "../ggml/dtype.js";
import { type Model, wholeWeights } from "../models/index.js";
import {
  type Candidate,
  calibrate,
  candidateLoss,
  cutTo,
  keptIndices,
  largestCandidate,
  loadScores,
  type PrunedModel,
  type PrunePlan,
  planFor,
  prune,
  type RankedCandidate,
  type Reranking,
  rankCandidates,
  rankingLoss,
  type Scores,
  saveScores,
} from "../prune/index.js";
import { elementAt } from "../system/arrays.js";
import { FormatError, UsageError } from "../system/errors.js";
import { hashBytes, writeJson } from "../system/files.js";
import type { ComputeType } from "../tensor/index.js";
import { BRIEF_DISTILLATION, distillBriefly } from "./distill.js";
import type { JobOptions } from "./job.js";
import { memoryFor } from "./model-memory.js";
import { checkInLlamaCpp } from "./open-model.js";
import { perLayerCandidate } from "./per-layer.js";
import type { SearchInputs } from "./search-inputs.js";
import { sharedCalibration } from "./shared/calibration.js";
import { sharedCandidates } from "./shared/candidates.js";
import { CandidateRefits, planId, refitSamplesOf, type StartStatistics } from "./start.js";
import { candidatesFor, isForLlamaCpp, type TargetOptions } from "./target.js";
import { checkTrainingFits, trainOptionsFor } from "./training.js";

const DEFAULT_MAX_CANDIDATES = 12;
const DEFAULT_CALIBRATION_SAMPLES = 1024;
const DEFAULT_DEPTH_METHOD = "contiguous-loss";
/** Validation sequences that layers and candidates are measured on. */
const SEARCH_SEQUENCES = 64;
const CALIBRATION_BATCH_TOKENS = 2048;

/** The scores in a run's folder, where the user wants no file of them. */
export const SCORES_FILE = "scores.safetensors";

/** Where a calibration keeps what it found. */
export interface ScoresPlace {
  /** Of the model's content, for the file of scores. */
  readonly identity?: string | undefined;
  /** The path of a file of the run, by its name: for scores that the user wants no file of, and for the progress of a long pass. */
  readonly place?: ((name: string) => string) | undefined;
}

/** Calibrates, or reads the scores of an earlier calibration. */
export async function scoresFor(inputs: Omit<SearchInputs, "validation">, { identity, place }: ScoresPlace = {}) {
  const { backend, original, weights, tokens, computeType, options } = inputs;
  const { signal, ranks } = options;
  const scoresFile = options.scoresFile ?? place?.(SCORES_FILE);
  if (scoresFile !== undefined && existsSync(scoresFile)) {
    if (options.scoresFile !== undefined && options.calibrationSamples !== undefined)
      options.onNote?.(`${scoresFile} has scores already: --samples changes nothing of them`);
    return loadScores(scoresFile, weights.model, identity);
  }
  const length = Math.min(defaultSequenceLength(weights.model), Math.max(1, tokens.length - 1));
  const sequences = new Sequences(tokens, length);
  const batches = {
    samples: options.calibrationSamples ?? DEFAULT_CALIBRATION_SAMPLES,
    batchSize: Math.max(1, Math.floor(CALIBRATION_BATCH_TOKENS / length)),
  };
  const onProgress = (done: number, total: number) =>
    options.onProgress?.({ stage: "calibrate", done, total, unit: "sequences" });
  const measured = { backend, weights, path: original.path, computeType, options };
  const savedStreams = place && new SavedStreams(place("calibration-streams.safetensors"));
  const scores =
    ranks === undefined
      ? await calibrate(backend, weights, sequences, { ...batches, computeType, signal, savedStreams, onProgress })
      : await sharedCalibration(ranks, measured, sequences, batches, onProgress);
  if (scoresFile !== undefined) saveScores(scoresFile, scores, identity);
  savedStreams?.delete();
  return scores;
}

/** How layers and candidates are measured. */
export const depthOptions = (
  model: Model,
  options: TargetOptions & Pick<JobOptions, "ranks" | "signal">,
  computeType: ComputeType,
) => ({
  isPossible: (plan: PrunePlan) => isPossible(model, options, plan),
  method: options.depthMethod ?? DEFAULT_DEPTH_METHOD,
  computeType,
  sequenceLength: Math.min(256, defaultSequenceLength(model)),
  maxSequences: SEARCH_SEQUENCES,
  signal: options.ranks === undefined ? options.signal : undefined,
});

/** The same for candidates, which have what memory is left beside the original. */
const measuringOptions = ({ backend, options, computeType }: SearchInputs, model: Model) => ({
  ...depthOptions(model, options, computeType),
  memoryBytes: memoryFor(backend, options),
});

/** Whether a configuration can say what a cut leaves, and llama.cpp can compute it where it must. */
function isPossible(model: Model, options: TargetOptions, { sizes, keptLayers }: PrunePlan): boolean {
  try {
    const cut = model.resized(sizes, keptLayers);
    if (isForLlamaCpp(options)) cut.gguf();
    return true;
  } catch (error) {
    if (error instanceof FormatError) return false;
    throw error;
  }
}

/** The record of a search in a run's directory: what candidates were measured on, and the candidates, best first. */
export const RANKING_FILE = "search.json";

const summaryOf = ({ sizes, parameters, plan, loss, refittedLoss, distilledLoss }: RankedCandidate) => ({
  sizes,
  parameters,
  keptLayers: plan.keptLayers,
  loss,
  refittedLoss,
  distilledLoss,
});

/** For a pruned model that llama.cpp cannot compute, though it can compute the original. */
export const OTHER_CUTS =
  "Leave the width as it is (--axes ffn or ffn,layers), or do without --gguf and tasks that generate";

/**
 * Ranks the architectures that meet a target, best first.
 * @param measurements of the best candidates beyond their loss as pruned
 * @param rankingFile records the ranking
 */
export async function search(
  inputs: SearchInputs & { readonly scores: Scores; readonly candidates?: readonly Candidate[] | undefined },
  { statistics, distill }: SearchMeasurements,
  rankingFile?: string,
): Promise<RankedCandidate[]> {
  const { original, options, computeType, candidates = candidatesFor(original.model, options) } = inputs;
  const { method: depthMethod, ...measuring } = measuringOptions(inputs, original.model);
  const refits =
    statistics && new CandidateRefits(inputs, { scores: inputs.scores, statistics, onProgress: refitProgress(inputs) });
  const rerankings = rerankingsOf(inputs, refits, distill);
  const { ranks } = options;
  const measured = { path: original.path, computeType, options };
  const alike = await rankCandidates(inputs, candidates, {
    ...measuring,
    measureAll: ranks && sharedCandidates(ranks, measured, inputs.validation, inputs.scores, measuring),
    depthMethod,
    maxCandidates: options.maxCandidates ?? DEFAULT_MAX_CANDIDATES,
    onProgress: (done, total) => options.onProgress?.({ stage: "search", done, total, unit: "candidates" }),
    rerankings,
  });
  if (alike.length === 0) {
    for (const { sizes } of isForLlamaCpp(options) ? candidates : [])
      checkInLlamaCpp(cutTo(original.model, sizes).model, OTHER_CUTS);
    throw new UsageError(
      `${isForLlamaCpp(options) ? "llama.cpp can compute" : "a configuration can express"} no candidate without the layers that cost least: leave the layers as they are (--axes hidden,ffn), or take whole runs of them (--depth contiguous-loss)`,
    );
  }
  const isPerLayer = options.perLayer === true && statistics !== undefined;
  const ranked = isPerLayer ? await withPerLayer(inputs, alike, { statistics, rerankings }) : alike;
  refits?.keepOnly(ranked[0]?.plan);
  if (rankingFile !== undefined) {
    const available = inputs.validation.length - 1;
    const sequenceLength = Math.min(measuring.sequenceLength, available);
    const tokens = Math.min(measuring.maxSequences * sequenceLength, available);
    const measuredOn = { tokens, sequenceLength, computeType };
    writeJson(rankingFile, { measuredOn, candidates: ranked.map(summaryOf) });
  }
  return ranked;
}

/** Measurements of the best candidates beyond their loss as pruned. */
export interface SearchMeasurements {
  /** For refitted starts. */
  readonly statistics?: StartStatistics | undefined;
  readonly distill?: BriefDistiller | undefined;
}

/** Distills a start briefly and returns its validation loss. @param id names the start */
type BriefDistiller = (start: PrunedModel, id: string) => Promise<number>;

/** Refits of candidates: of several on few sequences, then of the best on more. */
const REFITS = [
  { candidates: 6, samples: 16 },
  { candidates: 2, samples: 64 },
];
const DISTILLED_CANDIDATES = 4;

const refitProgress =
  ({ options }: SearchInputs) =>
  (done: number, total: number): void =>
    options.onProgress?.({ stage: "refit a candidate", done, total, unit: "steps" });

/** @param refits for refitted starts */
function rerankingsOf(
  inputs: SearchInputs & { readonly scores: Scores },
  refits: CandidateRefits | undefined,
  distill: SearchMeasurements["distill"],
): Reranking[] {
  const { scores, original } = inputs;
  const samplesOfAll = refitSamplesOf(inputs);
  // a second refit on as many sequences as the first would tell nothing new
  const refitted = REFITS.filter((_, i) => i === 0 || elementAt(REFITS, i - 1).samples < samplesOfAll).map(
    ({ candidates, samples }) =>
      ({ measure: "refittedLoss", candidates, samples, of: (cut: PrunedModel) => lossOf(inputs, cut) }) as const,
  );
  const distilled = distill && {
    measure: "distilledLoss" as const,
    candidates: DISTILLED_CANDIDATES,
    samples: elementAt(REFITS, 1).samples,
    of: distill,
  };
  const measurements = [...(refits === undefined ? [] : refitted), ...(distilled === undefined ? [] : [distilled])];
  return measurements.map(({ measure, candidates, samples, of }) => ({
    measure,
    candidates,
    lossOf: ({ plan }) => {
      const kept = keptIndices(original.model, plan, scores);
      if (refits !== undefined)
        return refits.measure(plan, { samples, measure }, (cut) => of(cut, cutId(plan, samples, kept)));
      const find = () => of(prune(original, plan, kept), cutId(plan, 0, kept));
      return inputs.known === undefined ? find() : inputs.known.once([measure, planId(plan, 0)], find);
    },
  }));
}

/** Names a cut by what it keeps, too. */
function cutId(plan: PrunePlan, samples: number, kept: ReturnType<typeof keptIndices>): string {
  const hashes = [...kept].map(([dimension, indices]) => [dimension, hashBytes(bytesOf(indices))]);
  return hashBytes(JSON.stringify([planId(plan, samples), hashes])).slice(0, 12);
}

/** The candidates beside one with a size for each layer, of as many parameters as the best, measured as the best was. */
async function withPerLayer(
  inputs: SearchInputs & { readonly scores: Scores },
  [best, ...others]: readonly RankedCandidate[],
  { statistics, rerankings }: { readonly statistics: StartStatistics; readonly rerankings: readonly Reranking[] },
): Promise<RankedCandidate[]> {
  const { original, scores, options } = inputs;
  const { model } = original;
  if (best === undefined) return [];
  const chosen = await perLayerCandidate(inputs, statistics, best.parameters);
  if (chosen === undefined) {
    options.onNote?.(
      `no sizes for each layer make the ${best.parameters} parameters of the best candidate: all layers are cut alike`,
    );
    return [best, ...others];
  }
  const plan = planFor(model, chosen.sizes, []);
  if (!isPossible(model, options, plan)) {
    options.onNote?.("llama.cpp cannot compute such a model with a size for each layer: all layers are cut alike");
    return [best, ...others];
  }
  const loss = await lossOf(inputs, prune(original, plan, keptIndices(model, plan, scores)));
  const rivals: RankedCandidate[] = [];
  for (const candidate of [best, { ...chosen, plan, loss }]) {
    let measured: RankedCandidate = candidate;
    for (const { measure, lossOf: costlierLoss } of lastOfEachMeasure(rerankings))
      if (measured[measure] === undefined) measured = { ...measured, [measure]: await costlierLoss(measured) };
    rivals.push(measured);
  }
  return [...rivals.sort((a, b) => rankingLoss(a) - rankingLoss(b)), ...others];
}

const lastOfEachMeasure = (rerankings: readonly Reranking[]): Reranking[] => [
  ...new Map(rerankings.map((each) => [each.measure, each])).values(),
];

const lossOf = (inputs: SearchInputs, cut: PrunedModel): Promise<number> =>
  candidateLoss(cut, inputs, measuringOptions(inputs, cut.model));

/** The folder of a run for what its start is made of. */
export const REFIT_FOLDER = "refit";

/**
 * Distills candidates briefly, with default settings; undefined when that was not requested.
 * @param run keeps what a killed process goes on from
 * @throws CoppiceError where there is too little memory for it
 */
export function briefDistiller(
  inputs: SearchInputs,
  candidates: readonly Candidate[],
  run?: RunDirectory,
): BriefDistiller | undefined {
  const { backend, original, weights, tokens, validation, computeType, options } = inputs;
  if (options.searchTokens === undefined) return undefined;
  const teacher = wholeWeights(weights, BRIEF_DISTILLATION);
  const settings = trainOptionsFor(teacher.model, { tokens: options.searchTokens, computeType });
  const { model } = cutTo(original.model, largestCandidate(candidates).sizes);
  checkTrainingFits({ backend, model, settings, teacher, options: { ...options, ranks: undefined } });
  return (pruned, id) =>
    distillBriefly({
      backend,
      teacher,
      pruned,
      tokens,
      validation,
      settings,
      options,
      run: run?.part(`${REFIT_FOLDER}/brief-${id}`),
    });
}
