import { existsSync } from "node:fs";
import { Sequences, type TokenStream } from "../data/index.js";
import { defaultSequenceLength } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import type { ModelTensors, ModelWeights } from "../models/index.js";
import {
  calibrate,
  loadScores,
  type PrunedModel,
  type RankedCandidate,
  rankCandidates,
  type Scores,
  saveScores,
} from "../prune/index.js";
import { writeJson } from "../system/files.js";
import type { ComputeType } from "../tensor/index.js";
import { distilBriefly } from "./distill.js";
import type { JobOptions } from "./environment.js";
import { candidatesFor, type TargetOptions } from "./target.js";
import { trainOptionsFor } from "./training.js";

const DEFAULT_MAX_CANDIDATES = 12;
const DEFAULT_CALIBRATION_SAMPLES = 1024;
/** Sequences that candidates are measured on. */
export const SEARCH_SEQUENCES = 64;
const CALIBRATION_BATCH_TOKENS = 2048;

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
  /** Where the ranking is recorded. */
  readonly rankingFile?: string | undefined;
  /** Distills a candidate briefly; see `rankCandidates`. */
  readonly distill?: ((pruned: PrunedModel) => Promise<number>) | undefined;
}

/** The record of a search in a run's directory, best first. */
export const RANKING_FILE = "search.json";

const summaryOf = ({ sizes, parameters, plan, loss, distilledLoss }: RankedCandidate) => ({
  sizes,
  parameters,
  keptLayers: plan.keptLayers,
  loss,
  distilledLoss,
});

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
  const ranked = await rankCandidates(backend, original, weights, candidates, scores, validation, {
    ...common,
    maxCandidates: options.maxCandidates ?? DEFAULT_MAX_CANDIDATES,
    onProgress: (done, total) => options.onProgress?.({ stage: "search", done, total, unit: "candidates" }),
    distill: stage.distill,
  });
  if (stage.rankingFile !== undefined) writeJson(stage.rankingFile, ranked.map(summaryOf));
  return ranked;
}

/** How candidates are distilled briefly, where that was asked for. */
export function briefDistiller(
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
