export type { RunFiles } from "../system/run-files.js";
export { DIVERGENCES, type Divergence } from "./divergences.js";
export { followTraining, sharedOptions } from "./follow.js";
export { sampledCrossEntropy, topKDivergence } from "./losses.js";
export { fittingMicroBatch, type StepMemory } from "./micro-batch.js";
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
export { type SampledOptions, sampledTargets } from "./sampled-targets.js";
export type { SavedTensor } from "./saved-tensor.js";
export type { Position, SparseTargets, TargetTensors, TargetValues } from "./sparse-targets.js";
export {
  type FillOptions,
  type SequenceSet,
  type SparseInputs,
  SparseTeacher,
  type SparseTeacherOptions,
  type TokensOf,
} from "./teacher.js";
export { type TopKOptions, topKTargets } from "./top-k-targets.js";
export { checkTrainOptions, defaultTrainOptions, forTokens, stepsOf, type TrainOptions } from "./train-options.js";
export { Trainer, type TrainJob, type TrainProgress, type TrainResult, train } from "./trainer.js";
export type { StepOutcome, TrainingStepInputs } from "./training-step.js";
