export { BENCH_WORK, type BenchJob, type BenchOutcome, type BenchWork, bench } from "./bench.js";
export { type CompressJob, type CompressOutcome, compress } from "./compress.js";
export { type DevicePlan, type DevicePlanJob, planForDevice } from "./device-plan.js";
export { type DataOptions, type JobOptions, openModel, type ProgressEvent } from "./environment.js";
export {
  EVALUATION_ENGINES,
  type EvaluateJob,
  type EvaluateOutcome,
  type EvaluationEngine,
  evaluate,
  isBenchmark,
  type ModelEvaluation,
} from "./evaluate.js";
export { type Headline, headlines } from "./evaluation-table.js";
export { type GenerateJob, type GenerateOutcome, generate, type OpenEngineJob, openEngine } from "./generate.js";
export {
  type ExportJob,
  type ExportOutcome,
  exportModel,
  type FileReport,
  type QuantizedFile,
  type QuantizeJob,
  type QuantizeOutcome,
  quantize,
  runnableGguf,
} from "./gguf.js";
export { type Inspection, inspect, type Measurement, measurePerplexity, type PerplexityJob } from "./measure.js";
export {
  type PlanJob,
  type PlanOutcome,
  type PlanSummary,
  type PruneJob,
  type PruneOutcome,
  plan,
  pruneModel,
  type TargetOptions,
} from "./pruning.js";
export {
  type DistillJob,
  distill,
  type PretrainJob,
  pretrain,
  type TeacherOptions,
  type TrainingOutcome,
  type TrainSettings,
} from "./training.js";
