export type { Matrix } from "../linear-algebra/index.js";
export type { KnownValues } from "../system/known-values.js";
export { calibrate } from "./calibration.js";
export { type CandidateLosses, rankingLoss } from "./candidate-losses.js";
export {
  type Candidate,
  cutTo,
  DEFAULT_TOLERANCE,
  enumerateCandidates,
  largestCandidate,
  layersOf,
  nearestCandidate,
  parametersAt,
  retainedImportance,
  type SearchSpace,
} from "./candidates.js";
export { ascending, type DepthOptions, type IsPossible, layerOrder, type RankingInputs } from "./depth.js";
export { DEPTH_METHODS, type DepthMethod } from "./depth-methods.js";
export { Gram } from "./gram.js";
export { type RemovalOptions, removalLosses } from "./obs.js";
export { cheapestSizes, keptColumns, layerSizes, leastParameters, type StepSizes } from "./per-layer.js";
export { axisSizes, type KeptIndices, keptIndices, type PrunePlan, planFor, planWithLayers } from "./plan.js";
export {
  candidateLoss,
  type MeasureAll,
  type MeasuringOptions,
  type RankedCandidate,
  type Reranking,
  rankCandidates,
  type SearchOptions,
} from "./ranking.js";
export { loadScores, type Scores, saveScores } from "./scores.js";
export { type AxisSize, type AxisSizes, describeSize, describeSizes, largestOf, parseSizes } from "./sizes.js";
export {
  type SurgeonOptions,
  type SurgeonProgress,
  type SurgeonScores,
  scoredBySteps,
  surgeonScores,
} from "./surgeon-scores.js";
export { type PrunedModel, prune } from "./surgery.js";
export { parseTarget, type Target } from "./target.js";
