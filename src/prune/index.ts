export {
  type Candidate,
  DEFAULT_TOLERANCE,
  describeSizes,
  enumerateCandidates,
  parametersAt,
  retainedImportance,
  type SearchSpace,
} from "./candidates.js";
export { DEPTH_METHODS, type DepthMethod, layerOrder } from "./depth.js";
export { calibrate, loadScores, type Scores, saveScores } from "./importance.js";
export {
  type KeptIndices,
  keptIndices,
  type PrunePlan,
  planWithLayers,
  UNIFORM_AXES,
  type UniformAxis,
  type UniformSizes,
  uniformPlan,
  uniformSizes,
} from "./plan.js";
export { type RankedCandidate, rankCandidates, type SearchOptions } from "./search.js";
export { type PrunedModel, prune } from "./surgery.js";
export { parseSizes, parseTarget, type Target } from "./target.js";
