export { BENCH_WORK, type BenchJob, type BenchOutcome, type BenchWork, bench } from "./bench.js";
export { type CompressJob, type CompressOutcome, compress } from "./compress.js";
export type { DataOptions, JobOptions, ProgressEvent } from "./environment.js";
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
