export type { RunFiles } from "../system/run-files.js";
export { DIVERGENCES, type Divergence } from "./divergences.js";
export { type TopKTargets, topKDivergence } from "./losses.js";
export {
  type BuiltObjective,
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  defaultIntermediatePairs,
  distillationObjective,
  type Objective,
  type ObjectiveContext,
  type Teacher,
} from "./objective.js";
export { type MetricsRecord, parseMetrics, RunDirectory, type TrainerState } from "./run-directory.js";
export { type TopKInputs, TopKTeacher, type TopKTeacherOptions } from "./teacher.js";
export {
  checkTrainOptions,
  defaultTrainOptions,
  forTokens,
  Trainer,
  type TrainJob,
  type TrainOptions,
  type TrainProgress,
  type TrainResult,
  train,
} from "./trainer.js";
