import { existsSync } from "node:fs";
import { Sequences, type TokenStream } from "../data/index.js";
import { defaultSequenceLength } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import type { Model, ModelTensors, ModelWeights } from "../models/index.js";
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
import { distillBriefly } from "./distill.js";
import type { JobOptions } from "./job.js";
import { candidatesFor, type TargetOptions } from "./target.js";
import { trainOptionsFor } from "./training.js";

const DEFAULT_MAX_CANDIDATES = 12;
const DEFAULT_CALIBRATION_SAMPLES = 1024;
const DEFAULT_DEPTH_METHOD = "contiguous-loss";
/** Validation sequences that layers and candidates are measured on. */
const SEARCH_SEQUENCES = 64;
const CALIBRATION_BATCH_TOKENS = 2048;

/** A model that is loaded to be scored and cut. */
export interface SearchInputs {
  readonly backend: Backend;
  readonly original: ModelTensors;
  readonly weights: ModelWeights;
  /** Training data, to calibrate on. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly computeType: ComputeType;
  readonly options: TargetOptions & JobOptions;
}

/**
 * Calibrates, or reads the scores of an earlier calibration.
 * @param identity of the model's content, for the file of scores
 */
export async function scoresFor(inputs: Omit<SearchInputs, "original" | "validation">, identity?: string) {
  const { backend, weights, tokens, computeType, options } = inputs;
  const { scoresFile, onProgress } = options;
  if (scoresFile !== undefined && existsSync(scoresFile)) return loadScores(scoresFile, weights.model, identity);
  const length = Math.min(defaultSequenceLength(weights.model), Math.max(1, tokens.length - 1));
  const scores = await calibrate(backend, weights, new Sequences(tokens, length), {
    samples: options.calibrationSamples ?? DEFAULT_CALIBRATION_SAMPLES,
    batchSize: Math.max(1, Math.floor(CALIBRATION_BATCH_TOKENS / length)),
    computeType,
    onProgress: (done, total) => onProgress?.({ stage: "calibrate", done, total, unit: "sequences" }),
  });
  if (scoresFile !== undefined) saveScores(scoresFile, scores, identity);
  return scores;
}

/** How layers and candidates are measured. */
export const depthOptions = (model: Model, options: TargetOptions, computeType: ComputeType) => ({
  method: options.depthMethod ?? DEFAULT_DEPTH_METHOD,
  computeType,
  sequenceLength: Math.min(256, defaultSequenceLength(model)),
  maxSequences: SEARCH_SEQUENCES,
});

/** The record of a search in a run's directory: what candidates were measured on, and the candidates, best first. */
export const RANKING_FILE = "search.json";

const summaryOf = ({ sizes, parameters, plan, loss, distilledLoss }: RankedCandidate) => ({
  sizes,
  parameters,
  keptLayers: plan.keptLayers,
  loss,
  distilledLoss,
});

/**
 * Ranks the architectures that meet a target, best first.
 * @param distill see `rankCandidates`
 * @param rankingFile records the ranking
 */
export async function search(
  inputs: SearchInputs & { readonly scores: Scores },
  distill: ((pruned: PrunedModel) => Promise<number>) | undefined,
  rankingFile?: string,
): Promise<RankedCandidate[]> {
  const { original, options, computeType } = inputs;
  const { method: depthMethod, ...measuring } = depthOptions(original.model, options, computeType);
  const ranked = await rankCandidates(inputs, candidatesFor(original.model, options), {
    ...measuring,
    depthMethod,
    maxCandidates: options.maxCandidates ?? DEFAULT_MAX_CANDIDATES,
    onProgress: (done, total) => options.onProgress?.({ stage: "search", done, total, unit: "candidates" }),
    distill,
  });
  if (rankingFile !== undefined) {
    const available = inputs.validation.length - 1;
    const sequenceLength = Math.min(measuring.sequenceLength, available);
    const tokens = Math.min(measuring.maxSequences * sequenceLength, available);
    const measuredOn = { tokens, sequenceLength, computeType };
    writeJson(rankingFile, { measuredOn, candidates: ranked.map(summaryOf) });
  }
  return ranked;
}

/** Distills candidates briefly, with default settings; undefined when that was not requested. */
export function briefDistiller(inputs: SearchInputs): ((pruned: PrunedModel) => Promise<number>) | undefined {
  const { backend, weights: teacher, tokens, validation, computeType, options } = inputs;
  if (options.searchTokens === undefined) return undefined;
  const settings = trainOptionsFor(teacher.model, { tokens: options.searchTokens, computeType });
  return (pruned) => distillBriefly({ backend, teacher, pruned, tokens, validation, settings });
}
