export type { Comparison } from "../check/compare.js";
export { type BenchJob, type BenchOutcome, bench } from "./bench.js";
export { BENCH_WORK, type BenchWork } from "./bench-work.js";
export type { BytesByKind } from "./bytes-by-kind.js";
export { type CheckJob, type CheckOutcome, check } from "./check.js";
export { compress } from "./compress.js";
export type { CompressJob, CompressOutcome, GgufOutcome, MeasuredFile } from "./compress-job.js";
export { type DevicePlan, type DevicePlanJob, planForDevice } from "./device-plan.js";
export type { Diagnosis, FoundDevice } from "./diagnosis.js";
export { type DistillJob, distill } from "./distill.js";
export { evaluate } from "./evaluate.js";
export {
  EVALUATION_ENGINES,
  type EvaluateJob,
  type EvaluateOutcome,
  type EvaluationEngine,
  type ModelEvaluation,
} from "./evaluation.js";
export { type Headline, headlines } from "./evaluation-table.js";
export { type ExportJob, type ExportOutcome, exportModel, type RunnableOptions, runnableGguf } from "./export.js";
export { type GenerateJob, type GenerateOutcome, generate, type OpenEngineJob, openEngine } from "./generate.js";
export { type Inspection, inspect } from "./inspect.js";
export type { JobOptions, ProgressEvent } from "./job.js";
export { type Measurement, measurePerplexity, type PerplexityJob } from "./measure.js";
export type { DataOptions } from "./open-data.js";
export { type OpenModel, openModel, type RunOnlyModel } from "./open-model.js";
export { type PlanJob, type PlanOutcome, plan } from "./plan.js";
export type { PlanSummary } from "./plan-summary.js";
export { type PretrainJob, pretrain } from "./pretrain.js";
export { type PruneJob, type PruneOutcome, pruneModel } from "./prune.js";
export { type FileReport, type QuantizedFile, type QuantizeJob, type QuantizeOutcome, quantize } from "./quantize.js";
export type { RoundSummary } from "./round-summary.js";
export { followLeader } from "./shared/follow.js";
export type { TargetOptions } from "./target.js";
export { isBenchmark } from "./task-names.js";
export type { TeacherOptions } from "./teacher-options.js";
export type { TrainingOutcome, TrainSettings } from "./training.js";
