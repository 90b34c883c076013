import type { Sequences, TokenStream } from "../data/index.js";
import {
  checkTrainOptions,
  defaultTrainOptions,
  type Objective,
  type RunDirectory,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { defaultSequenceLength, perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import { countParameters, type Model, type ModelWeights, sizeOf } from "../models/index.js";
import type { DataOptions, JobOptions } from "./environment.js";
import { forecast } from "./forecast.js";
import { type Measurement, measure } from "./measure.js";
import { writeReport } from "./report.js";
import { checkLength } from "./sanity.js";
import type { Stages } from "./stages.js";

/** Training settings that a user may set; the rest have defaults that suit the model. */
export type TrainSettings = Partial<Omit<TrainOptions, "tokens">> & { readonly tokens: number };

/** Sequences per step where nothing is said. */
const DEFAULT_BATCH_TOKENS = 4096;

/** Completes settings for a model. @throws UsageError for those that cannot be */
export function trainOptionsFor(model: Model, settings: TrainSettings): TrainOptions {
  const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
  const sequenceLength = settings.sequenceLength ?? Math.min(256, defaultSequenceLength(model));
  const batchSize = settings.batchSize ?? Math.max(1, Math.round(DEFAULT_BATCH_TOKENS / sequenceLength));
  const defaults = defaultTrainOptions(sizeOf("hidden", model.sizes), settings.tokens, sequenceLength, batchSize);
  const learningRate = settings.learningRate ?? defaults.learningRate;
  const options = { ...defaults, minimumLearningRate: learningRate / 10, ...given };
  checkTrainOptions(options);
  checkLength(options.sequenceLength, model);
  return options;
}

/** Everything a training stage is made of. */
export interface TrainStage {
  readonly backend: Backend;
  readonly stage: string;
  /** Whether it takes only a part of the tokens that were asked for. */
  readonly isPart?: boolean | undefined;
  readonly run: RunDirectory;
  readonly model: Model;
  readonly student: ModelWeights;
  readonly objective: Objective;
  readonly sequences: Sequences;
  readonly settings: TrainOptions;
  readonly validation: TokenStream;
  readonly options: JobOptions;
}

/** How much of the validation data is measured during training. */
const VALIDATION_SEQUENCES = 32;

/** Trains, with progress, metrics and checkpoints. */
export function runTraining(stage: TrainStage): Promise<TrainResult> {
  const { backend, run, model, student, objective, sequences, settings, validation, options } = stage;
  const foresee = forecast(stage.stage, (note) => options.onNote?.(note), stage.isPart !== true);
  run.checkRoom(countParameters(model.parameters, model.sizes));
  return train({
    backend,
    student,
    objective,
    sequences,
    options: settings,
    run,
    validate: async () => {
      const measured = await perplexity(backend, model, student, validation, {
        sequenceLength: settings.sequenceLength,
        maxSequences: VALIDATION_SEQUENCES,
        computeType: settings.computeType,
      });
      return measured.loss;
    },
    onProgress: ({ record, totalTokens }) => {
      foresee(record.tokens, totalTokens, performance.now() / 1000);
      options.onProgress?.({
        stage: stage.stage,
        done: record.tokens,
        total: totalTokens,
        unit: "tokens",
        detail: `loss ${record.loss.toFixed(3)}`,
      });
    },
    onNote: options.onNote,
    ...(options.signal && { signal: options.signal }),
  });
}

/** What training commands have in common. */
export interface TrainingJob extends JobOptions, DataOptions {
  readonly out: string;
  readonly settings: TrainSettings;
  /** Discard what a run in `out` has done. */
  readonly restart?: boolean | undefined;
}

export interface TrainingOutcome {
  readonly student: Measurement;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly out: string;
}

/** Measures what a run has written, drops its checkpoints and writes its report. */
export async function finish(
  backend: Backend,
  run: RunDirectory,
  stages: Stages,
  result: TrainResult,
  validation: TokenStream,
  sequenceLength: number,
  job: TrainingJob,
): Promise<TrainingOutcome> {
  const student = await stages.once("measure", () =>
    measure(backend, job.out, validation, "measure", { ...job, sequenceLength }),
  );
  const { tokens, seconds, tokensPerSecond } = result;
  const outcome = { student, tokens, seconds, tokensPerSecond, out: job.out };
  run.dropCheckpoints();
  writeReport(run, { ...outcome, name: job.out, models: { student }, stages: stages.all });
  run.finish();
  return outcome;
}
