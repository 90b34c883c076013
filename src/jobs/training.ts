import { constants } from "node:buffer";
import { existsSync } from "node:fs";
import { z } from "zod";
import { readJsonObject } from "../checkpoint/json.js";
import { storedType } from "../checkpoint/stored-type.js";
import type { Sequences, TokenStream } from "../data/index.js";
import {
  checkTrainOptions,
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  defaultTrainOptions,
  distillationObjective,
  fittingMicroBatch,
  type Objective,
  type RunDirectory,
  sharedOptions,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { defaultSequenceLength, perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import {
  bytesOnDevice,
  type Checkpoint,
  countParameters,
  type Model,
  type ModelTensors,
  ModelWeights,
  reservedWeights,
  shapeOf,
  sizeOf,
  typesOn,
  writeModel,
} from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { defined } from "../system/defined.js";
import { CoppiceError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import { formatBytes } from "../system/format.js";
import { elementCount } from "../tensor/index.js";
import { forecast } from "./forecast.js";
import type { JobOptions } from "./job.js";
import { type Measurement, measure } from "./measure.js";
import { checkTrainable, memoryForTraining, sharersOf, trainingBytes } from "./model-memory.js";
import type { DataOptions } from "./open-data.js";
import { writeReport } from "./report.js";
import { checkLength } from "./sanity.js";
import { withFollowers } from "./shared/training.js";
import type { TeacherRecipe } from "./sparse-teacher.js";
import type { Stages } from "./stages.js";

/** Training settings; those that are not set have defaults that suit the model. */
export type TrainSettings = Partial<Omit<TrainOptions, "tokens">> & { readonly tokens: number };

/** Tokens per step that the default batch size aims at: the fewer in a short run, for 200 steps. See docs/claims.md, "Batches". */
const [LEAST_BATCH_TOKENS, MOST_BATCH_TOKENS] = [256, 4096];
const SHORT_RUN_STEPS = 200;

/** Completes training settings for a model. @throws UsageError for invalid ones */
export function trainOptionsFor(model: Model, settings: TrainSettings): TrainOptions {
  const sequenceLength = settings.sequenceLength ?? Math.min(256, defaultSequenceLength(model));
  const batchTokens = Math.min(MOST_BATCH_TOKENS, Math.max(LEAST_BATCH_TOKENS, settings.tokens / SHORT_RUN_STEPS));
  const batchSize = settings.batchSize ?? Math.max(1, Math.round(batchTokens / sequenceLength));
  const defaults = defaultTrainOptions(sizeOf("hidden", model.sizes), settings.tokens, sequenceLength, batchSize);
  const learningRate = settings.learningRate ?? defaults.learningRate;
  const options = { ...defaults, minimumLearningRate: learningRate / 10, ...defined(settings) };
  checkTrainOptions(options);
  checkLength(options.sequenceLength, model);
  return options;
}

/** The inputs of a training stage. */
export interface TrainStage {
  readonly backend: Backend;
  readonly stage: string;
  /** Whether it takes only a part of the job's tokens. */
  readonly isPart?: boolean | undefined;
  readonly run: RunDirectory;
  readonly model: Model;
  readonly student: ModelWeights;
  readonly objective: Objective;
  /** How other processes of the job make the same objective: from a teacher, or else the next tokens of the data. */
  readonly recipe?: TeacherRecipe | undefined;
  /** Memory that the teacher takes, or will take. */
  readonly teacherBytes?: number | undefined;
  readonly sequences: Sequences;
  readonly settings: TrainOptions;
  /** Where in the order of training the stage begins; 0 by default. */
  readonly firstSequence?: number | undefined;
  readonly validation: TokenStream;
  readonly options: JobOptions;
}

/** How many validation sequences are measured during training. */
const VALIDATION_SEQUENCES = 32;

/** Trains, with progress, metrics and checkpoints in the run's directory. */
export function runTraining(stage: TrainStage): Promise<TrainResult> {
  const { backend, run, model, student, objective, sequences, firstSequence, validation, options } = stage;
  const settings = withFittingBatch(stage);
  const noteForecast = forecast(stage.stage, (note) => options.onNote?.(note), stage.isPart !== true);
  run.checkRoom(countParameters(model.parameters, model.sizes));
  checkStorable(model);
  return withFollowers({ ...stage, settings }, () =>
    train({
      backend,
      student,
      objective,
      sequences,
      options: settings,
      firstSequence,
      run,
      validate: async () => {
        const measured = await perplexity(backend, student, validation, {
          sequenceLength: settings.sequenceLength,
          maxSequences: VALIDATION_SEQUENCES,
          computeType: settings.computeType,
        });
        return measured.loss;
      },
      onProgress: ({ record, totalTokens }) => {
        noteForecast(record.tokens, totalTokens, performance.now() / 1000);
        options.onProgress?.({
          stage: stage.stage,
          done: record.tokens,
          total: totalTokens,
          unit: "tokens",
          detail: `loss ${record.loss.toFixed(3)}`,
        });
      },
      onNote: options.onNote,
      signal: options.signal,
      ranks: options.ranks,
    }),
  );
}

const F32_BYTES = 4;

/** @throws CoppiceError where a tensor is larger than what Node can hold in one piece, as checkpoints are written */
function checkStorable(model: Model): void {
  for (const spec of model.parameters) {
    const bytes = F32_BYTES * elementCount(shapeOf(spec, model.sizes));
    if (bytes > constants.MAX_LENGTH)
      throw new CoppiceError(
        `${spec.name} takes ${formatBytes(bytes)} in a checkpoint, more than Node ${process.version} holds in one piece (${formatBytes(constants.MAX_LENGTH)}): use Node 22 or later`,
      );
  }
}

/** Records how many sequences of a batch each process computes at once. */
const MICRO_BATCH_FILE = "micro-batch.json";

/**
 * Settings with micro-batches that fit in memory. A run that goes on keeps to those that it began with, if they fit now: others would
 * add up numbers in another order.
 * @throws CoppiceError where nothing fits
 */
export function withFittingBatch(stage: FittedTraining): TrainOptions {
  const { run, settings, options } = stage;
  const { ranks } = options;
  const file = run?.file(MICRO_BATCH_FILE);
  const recorded = file !== undefined && existsSync(file) ? microBatchSchema.parse(readJsonObject(file)) : undefined;
  const begun = { ...settings, ...recorded };
  const wanted = ranks === undefined ? begun : sharedOptions(begun, ranks.size);
  const { microBatchSize, available } = fittingBatch({ ...stage, settings: wanted });
  if (run !== undefined && microBatchSize !== recorded?.microBatchSize)
    writeJson(run.own(MICRO_BATCH_FILE), { microBatchSize });
  if (microBatchSize < wanted.microBatchSize)
    options.onNote?.(
      `${ranks === undefined ? "a batch of" : "a process's part of"} ${settings.batchSize} sequences does not fit in ${formatBytes(available)}: ${microBatchSize} ${microBatchSize === 1 ? "is" : "are"} computed at a time`,
    );
  return { ...settings, microBatchSize };
}

/** A training to fit in memory. */
type FittedTraining = Pick<
  TrainStage,
  "backend" | "model" | "student" | "objective" | "teacherBytes" | "settings" | "options"
> & { readonly run?: RunDirectory | undefined };

/**
 * How many of the sequences that are to be computed at once fit, and the memory there is.
 * @throws CoppiceError where not even one does
 */
function fittingBatch(training: FittedTraining): {
  readonly microBatchSize: number;
  readonly available: number;
} {
  const { backend, model, student, objective, settings, options, teacherBytes = 0 } = training;
  // what is loaded already is of the fixed part
  const loadedBytes = student.store.byteLength + (objective.teacher?.store.byteLength ?? 0);
  const available = memoryForTraining(backend, options) + loadedBytes;
  const parameters = countParameters(model.parameters, model.sizes);
  const fixed = trainingBytes(parameters, settings, sharersOf(backend, options)) + teacherBytes;
  const microBatchSize = fittingMicroBatch({ backend, student, objective, options: settings }, { available, fixed });
  return { microBatchSize, available };
}

/** A training that is to come. */
export interface PlannedTraining {
  readonly backend: Backend;
  readonly model: Model;
  readonly settings: TrainOptions;
  readonly options: Pick<JobOptions, "memoryBytes" | "ranks">;
  /** Weights that are in memory beside the student, or will be. */
  readonly teacher?: ModelWeights | ModelTensors | undefined;
  /** Whether the teacher computes its predictions apart, and only a few numbers of them reach the student's graph. */
  readonly isSparse?: boolean | undefined;
  /** Another model that is in memory all the while. */
  readonly beside?: ModelTensors | undefined;
  /** States that are matched. */
  readonly intermediate?: DistillationOptions["intermediate"] | undefined;
}

/**
 * Checks that a training fits in memory, down to the activations of one sequence, before anything that takes long.
 * @throws CoppiceError with what it would take, and what makes it fit
 */
export function checkTrainingFits(planned: PlannedTraining): void {
  const { backend, model, settings, options, teacher, isSparse = false, beside, intermediate = [] } = planned;
  const { computeType } = settings;
  const parameters = countParameters(model.parameters, model.sizes);
  checkTrainable(backend, parameters, settings, options);
  const available = memoryForTraining(backend, options);
  const isToLoad = teacher !== undefined && !(teacher instanceof ModelWeights);
  const bytesOf = ({ model: read, source }: ModelTensors) => bytesOnDevice(read, source, typesOn(backend, computeType));
  const others = [...(isToLoad ? [teacher] : []), ...(beside === undefined ? [] : [beside])];
  const fixed = others.reduce(
    (sum, each) => sum + bytesOf(each),
    trainingBytes(parameters, settings, sharersOf(backend, options)),
  );
  const reserved: ModelWeights[] = [];
  const reserve = (...weights: Parameters<typeof reservedWeights>): ModelWeights => {
    reserved.push(reservedWeights(...weights));
    return elementAt(reserved, reserved.length - 1);
  };
  try {
    const student = reserve(backend, model, { dtype: "f32", trainable: true });
    let objective = crossEntropyObjective;
    if (teacher !== undefined && !isSparse) {
      const read = { dtype: computeType, trainable: false };
      const weights = isToLoad ? reserve(backend, teacher.model, read, teacher.source.tensors) : teacher;
      const vocabSize = Math.min(model.vocabSize, weights.model.vocabSize);
      const distillation = { ...DISTILLATION_DEFAULTS, intermediate, vocabSize };
      objective = distillationObjective({ kind: "online", weights }, distillation);
    }
    const { ranks } = options;
    const shared = ranks === undefined ? settings : sharedOptions(settings, ranks.size);
    fittingMicroBatch({ backend, student, objective, options: shared }, { available, fixed });
  } finally {
    for (const weights of reserved) weights.free();
  }
}

const microBatchSchema = z.object({ microBatchSize: z.number().int().positive() });

/**
 * Writes a model directory with trained weights, in the type in which the checkpoint was stored.
 * @param place the path of each file by its name
 */
export function writeTrained(
  out: string,
  checkpoint: Checkpoint,
  weights: ModelWeights,
  { onNote, place }: Pick<JobOptions, "onNote"> & { readonly place: (name: string) => string },
): void {
  const dtype = storedType(checkpoint.source);
  const tensors = { ...checkpoint, source: weights.source() };
  writeModel(out, tensors, { dtype, carryFrom: checkpoint.directory, place, onNote });
}

/** Options that all training commands have. */
export interface TrainingJob extends JobOptions, DataOptions {
  readonly out: string;
  readonly settings: TrainSettings;
  /** Discard what an earlier run has written in `out`. */
  readonly restart?: boolean | undefined;
}

export interface TrainingOutcome {
  readonly student: Measurement;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly out: string;
}

/** A run whose training is done. */
export interface TrainedRun {
  readonly backend: Backend;
  readonly run: RunDirectory;
  readonly stages: Stages;
  readonly result: TrainResult;
  readonly validation: TokenStream;
  readonly sequenceLength: number;
  readonly job: TrainingJob;
}

/** Measures the trained model, deletes the run's checkpoints and writes its report. */
export async function finish(trained: TrainedRun): Promise<TrainingOutcome> {
  const { backend, run, stages, result, validation, sequenceLength, job } = trained;
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
