import type { GroupResult, Task, TaskResult } from "../evaluate/index.js";
import type { ComputeType } from "../tensor/index.js";
import type { JobOptions } from "./environment.js";

/** What answers requests for likelihoods: our own engine, or llama.cpp for GGUF files. Text is always written by llama.cpp. */
export const EVALUATION_ENGINES = ["coppice", "llama.cpp"] as const;
export type EvaluationEngine = (typeof EVALUATION_ENGINES)[number];

export interface EvaluateJob extends JobOptions {
  /** Directories, .gguf files, hub ids, or `http://host/v1[#name]` of an OpenAI-compatible server. */
  readonly models: readonly string[];
  /** What they are called in results, in their order; as they are given by default. */
  readonly names?: readonly string[] | undefined;
  /**
   * Where answers are kept, and what is to be unchanged of each model for them to hold, for an evaluation that goes on elsewhere; in the
   * cache and by the models' files by default.
   */
  readonly answers?: { readonly directory: string; readonly identities: readonly string[] } | undefined;
  /** Names of tasks, groups and suites (`minitron`, the default), also `name:SHOTS`, and task files. */
  readonly tasks?: readonly string[] | undefined;
  /** At most so many documents of each task, or that share of them where below 1. */
  readonly limit?: number | undefined;
  /** Worked examples before each question; each task's own number by default. */
  readonly fewShot?: number | undefined;
  readonly maxLength?: number | undefined;
  readonly maxTokens?: number | undefined;
  /** Programs drawn for each programming problem, for pass@k. */
  readonly samples?: number | undefined;
  readonly temperature?: number | undefined;
  /** A directory of benchmark data that is looked at before the hub. */
  readonly data?: string | undefined;
  readonly engine?: EvaluationEngine | undefined;
  readonly computeType?: ComputeType | undefined;
  /** Put published scores beside the models' in the report. */
  readonly published?: boolean | undefined;
  /** Where results, samples in the harness's layout and the report go; nowhere by default. */
  readonly out?: string | undefined;
  readonly cacheDir?: string | undefined;
  /** Ask everything again, whatever was answered before. */
  readonly restart?: boolean | undefined;
}

/** A task, and how it is to be asked. */
export interface PlannedTask {
  readonly task: Task;
  readonly fewShot: number | undefined;
  /** Its name in the results: with the number of examples where the task is measured with several. */
  readonly label: string;
}

export interface ModelEvaluation {
  readonly model: string;
  readonly parameters?: number | undefined;
  readonly tasks: readonly TaskResult[];
  readonly groups: readonly GroupResult[];
  readonly seconds: number;
}

export interface EvaluateOutcome {
  readonly models: readonly ModelEvaluation[];
  readonly out?: string | undefined;
}
