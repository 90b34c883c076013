export { type BatchOptions, type CalibrationOptions, type SharedSums, spreadBatches } from "./batches.js";
export { type DatasetOptions, type DatasetRow, Datasets, type LoadedSplit } from "./datasets.js";
export { type DivergenceMeasurement, DivergenceMeter } from "./divergence.js";
export { RequestEncoder, type TokenPair } from "./encoding.js";
export {
  type EvaluatedModel,
  type EvaluateOptions,
  evaluateTask,
  type GroupResult,
  groupResults,
  type MetricResult,
  type Sample,
  type TaskResult,
} from "./evaluate.js";
export { overflowError, overflowingLayer, type ReadableWeights, type SuspectPass } from "./finite.js";
export * from "./kinds.js";
export { EngineLikelihoods, type LikelihoodOptions } from "./likelihood.js";
export {
  type Aggregation,
  aggregate,
  type Metric,
  type MetricValue,
  mean,
  metricKey,
  passAtK,
  rougeL,
  type Score,
} from "./metrics.js";
export {
  defaultSequenceLength,
  type Perplexity,
  type PerplexityOptions,
  perplexity,
} from "./perplexity.js";
export { PUBLISHED, type PublishedModel } from "./published.js";
export { ReplyCache } from "./reply-cache.js";
export * from "./requests.js";
export { type Passage, type PassageOptions, type PassLayout, passageOf } from "./residual-stream.js";
export { type ProgramOutcome, PythonSandbox, type SandboxOptions } from "./sandbox/python.js";
export { type Saved, SavedStreams, type StreamsByName } from "./saved-streams.js";
export { CompletionServer, type ServerOptions } from "./server.js";
export * from "./task.js";
export { loadTaskFile } from "./task-file.js";
export { SUITES, type SuiteEntry, TASK_GROUPS, TASKS, type TaskGroup, tasksOfGroup } from "./tasks/index.js";
export type { Team } from "./team.js";
