export {
  type Candidate,
  DEFAULT_TOLERANCE,
  describeSize,
  describeSizes,
  enumerateCandidates,
  parametersAt,
  retainedImportance,
  type SearchSpace,
} from "./candidates.js";
export { DEPTH_METHODS, type DepthMethod, layerOrder } from "./depth.js";
export { calibrate, loadScores, type Scores, saveScores } from "./importance.js";
export {
  type AxisSize,
  type AxisSizes,
  axisSizes,
  type KeptIndices,
  keptIndices,
  largestOf,
  type PrunePlan,
  planFor,
  planWithLayers,
} from "./plan.js";
export { type RankedCandidate, rankCandidates, type SearchOptions } from "./search.js";
export { type PrunedModel, prune } from "./surgery.js";
export { parseSizes, parseTarget, type Target } from "./target.js";
