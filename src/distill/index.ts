export { DIVERGENCES, type Divergence } from "./divergences.js";
export { topKDivergence } from "./losses.js";
export {
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  defaultIntermediatePairs,
  distillationObjective,
  type Objective,
  type Teacher,
} from "./objective.js";
export { type MetricsRecord, parseMetrics, RunDirectory } from "./run-directory.js";
export { TopKTeacher, type TopKTeacherOptions } from "./teacher.js";
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
