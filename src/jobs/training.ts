import path from "node:path";
import { floatSource, type TensorSource, writeCheckpoint } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import { checkVocabulary, Sequences, type TokenStream } from "../data/index.js";
import {
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  defaultTrainOptions,
  distillationObjective,
  type Objective,
  RunDirectory,
  TopKTeacher,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { defaultSequenceLength, type Perplexity, perplexity } from "../evaluate/index.js";
import type { Backend, FloatDType } from "../ggml/index.js";
import {
  type Checkpoint,
  initialise,
  loadWeights,
  type Model,
  type ModelWeights,
  modelFromConfig,
  openCheckpoint,
} from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { cacheDirectory, hashFile } from "../system/files.js";
import { type DataOptions, type JobOptions, onDevice, openData, openModel } from "./environment.js";
import { type Measurement, measure } from "./measure.js";
import { writeReport } from "./report.js";
import { Stages } from "./stages.js";

/** Training settings that a user may set; the rest have defaults that suit the model. */
export type TrainSettings = Partial<Omit<TrainOptions, "tokens">> & { readonly tokens: number };

/** Sequences per step where nothing is said. */
const DEFAULT_BATCH_TOKENS = 4096;

/** Completes settings for a model. */
export function trainOptionsFor(model: Model, settings: TrainSettings): TrainOptions {
  const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
  const sequenceLength = settings.sequenceLength ?? Math.min(256, defaultSequenceLength(model));
  const batchSize = settings.batchSize ?? Math.max(1, Math.round(DEFAULT_BATCH_TOKENS / sequenceLength));
  const defaults = defaultTrainOptions(model.sizes.hidden ?? 1, settings.tokens, sequenceLength, batchSize);
  const learningRate = settings.learningRate ?? defaults.learningRate;
  return { ...defaults, minimumLearningRate: learningRate / 10, ...given };
}

/** How the teacher reaches the student. */
export interface TeacherOptions {
  /** Keep only the teacher's k most probable tokens; with `cache` they are computed once and kept on disk. */
  readonly topK?: number;
  readonly cache?: boolean;
}

/** Hashes everything a model's numbers depend on, for keys of caches. */
async function modelId({ source, files }: Checkpoint): Promise<string> {
  const hashes = [];
  for (const file of [...files].sort()) hashes.push(await hashFile(file));
  return `${source.tensors.size}-${hashes.join("-")}`;
}

/** Everything a training stage is made of. */
export interface TrainStage {
  readonly backend: Backend;
  readonly stage: string;
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
    onProgress: ({ record, totalTokens }) =>
      options.onProgress?.({
        stage: stage.stage,
        done: record.tokens,
        total: totalTokens,
        unit: "tokens",
        detail: `loss ${record.loss.toFixed(3)}`,
      }),
    ...(options.signal && { signal: options.signal }),
  });
}

/** Distils a teacher into a student. @returns the trained weights, to be written */
export async function distillStage(
  stage: Omit<TrainStage, "objective" | "student" | "model"> & {
    readonly teacherPath: string;
    readonly student: { readonly model: Model; readonly source: TensorSource };
    readonly distillation: Partial<DistillationOptions>;
    readonly teacher: TeacherOptions;
    readonly cacheDir?: string;
    readonly write: (weights: ModelWeights) => void;
  },
): Promise<TrainResult> {
  const { backend, settings, sequences } = stage;
  const teacherCheckpoint = openCheckpoint(stage.teacherPath);
  const teacherModel = teacherCheckpoint.model;
  if (teacherModel.vocabSize !== stage.student.model.vocabSize)
    throw new UsageError(
      `the teacher's vocabulary has ${teacherModel.vocabSize} tokens, the student's ${stage.student.model.vocabSize}: they must be the same`,
    );
  checkVocabulary(sequences.stream, teacherModel.vocabSize);
  let loadedTeacher: ModelWeights | undefined;
  const teacherWeights = (): ModelWeights => {
    const dtype = settings.computeType;
    loadedTeacher ??= loadWeights(backend, teacherModel, teacherCheckpoint.source, { dtype, trainable: false });
    return loadedTeacher;
  };
  const options = { ...DISTILLATION_DEFAULTS, ...stage.distillation };
  const topK =
    stage.teacher.topK ?? (stage.teacher.cache || options.divergence === "top-k" ? DEFAULT_TOP_K : undefined);
  if (topK !== undefined && options.divergence !== "top-k" && options.divergence !== "forward-kl")
    throw new UsageError(
      `${options.divergence} needs the teacher's whole distribution: it does not go with top-k or cached logits`,
    );
  const topKTeacher =
    topK === undefined
      ? undefined
      : new TopKTeacher(backend, teacherWeights, sequences, {
          k: Math.min(topK, teacherModel.vocabSize),
          temperature: options.temperature,
          computeType: settings.computeType,
          vocabSize: teacherModel.vocabSize,
          teacherId: await modelId(teacherCheckpoint),
          ...(stage.teacher.cache && { cacheDirectory: path.join(cacheDirectory(stage.cacheDir), "logits") }),
        });
  const objective =
    topKTeacher === undefined
      ? distillationObjective({ kind: "online", weights: teacherWeights() }, options)
      : distillationObjective({ kind: "top-k", source: topKTeacher }, { ...options, divergence: "top-k" });
  const student = loadWeights(backend, stage.student.model, stage.student.source, { dtype: "f32", trainable: true });
  try {
    const result = await runTraining({ ...stage, model: stage.student.model, student, objective });
    stage.write(student);
    return result;
  } finally {
    student.free();
    topKTeacher?.free();
    loadedTeacher?.free();
  }
}

const DEFAULT_TOP_K = 64;

/** The validation loss of a pruned model after a short distillation, of which nothing is kept. */
export async function distilBriefly(
  backend: Backend,
  teacher: ModelWeights,
  pruned: PrunedModel,
  sequences: Sequences,
  validation: TokenStream,
  settings: TrainOptions,
): Promise<number> {
  const student = loadWeights(backend, pruned.model, pruned.source, { dtype: "f32", trainable: true });
  try {
    const objective = distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
    await train({ backend, student, sequences, options: settings, objective });
    const { sequenceLength, computeType } = settings;
    return (await perplexity(backend, pruned.model, student, validation, { sequenceLength, computeType })).loss;
  } finally {
    student.free();
  }
}

/** The type that a checkpoint's matrices are stored in. */
export const storedType = (source: TensorSource): FloatDType => {
  const counts = new Map<FloatDType, number>();
  for (const { dtype, shape } of floatSource(source).tensors.values())
    if (shape.length > 1) counts.set(dtype, (counts.get(dtype) ?? 0) + shape.reduce((a, b) => a * b, 1));
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "f32";
};

/** What training commands have in common. */
export interface TrainingJob extends JobOptions, DataOptions {
  readonly out: string;
  readonly settings: TrainSettings;
  /** Discard what a run in `out` has done. */
  readonly restart?: boolean;
}

export interface TrainingOutcome {
  readonly student: Measurement;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly out: string;
}

export interface PretrainJob extends TrainingJob {
  /** A model directory or hub id to go on from, or a directory with config.json and a tokenizer to start from scratch. */
  readonly model: string;
  readonly fromScratch?: boolean;
  readonly dtype?: FloatDType;
}

/** Opens a run's directory for a job, or goes on with the one that is there. */
export function openRun(
  out: string,
  configuration: Readonly<Record<string, unknown>>,
  restart: boolean | undefined,
): RunDirectory {
  const run = new RunDirectory(out);
  if (restart) run.discard();
  run.claim(configuration);
  return run;
}

/** Trains a model on the next token of data: from scratch, or going on from its weights. */
export async function pretrain(job: PretrainJob): Promise<TrainingOutcome> {
  const scratch = job.fromScratch === true;
  const checkpoint = scratch ? undefined : (await openModel(job.model, job)).checkpoint;
  const directory = checkpoint?.directory ?? job.model;
  const config = checkpoint?.config ?? readJsonObject(path.join(directory, "config.json"));
  const model = modelFromConfig(config);
  const { train: tokens, validation } = await openData(directory, job, job);
  checkVocabulary(tokens, model.vocabSize);
  const settings = trainOptionsFor(model, job.settings);
  const run = openRun(
    job.out,
    { command: "pretrain", model: job.model, fromScratch: scratch, data: tokens.id, settings },
    job.restart,
  );
  const stages = new Stages(run.file("stages.json"));
  return onDevice(job, async (backend) => {
    const dtype = job.dtype ?? (checkpoint === undefined ? "bf16" : storedType(checkpoint.source));
    const result = await stages.once("pretrain", async () => {
      const student =
        checkpoint === undefined
          ? initialise(backend, model, settings.seed)
          : loadWeights(backend, model, checkpoint.source, { dtype: "f32", trainable: true });
      try {
        const sequences = new Sequences(tokens, settings.sequenceLength);
        const outcome = await runTraining({
          ...{ backend, stage: "pretrain", run, model, student, objective: crossEntropyObjective },
          ...{ sequences, settings, validation, options: job },
        });
        writeCheckpoint(job.out, config, student.source(), { dtype, carryFrom: directory });
        return outcome;
      } finally {
        student.free();
      }
    });
    return finish(backend, run, stages, result, validation, settings.sequenceLength, job);
  });
}

/** Measures what a run has written, drops its checkpoints and writes its report. */
async function finish(
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
  return outcome;
}

export interface DistillJob extends TrainingJob {
  readonly teacher: string;
  readonly student: string;
  readonly distillation?: Partial<DistillationOptions>;
  readonly teacherOptions?: TeacherOptions;
}

/** Distils one model into another of the same vocabulary. */
export async function distill(job: DistillJob): Promise<TrainingOutcome & { readonly before: Perplexity }> {
  const teacher = await openModel(job.teacher, job);
  const student = await openModel(job.student, job);
  if (path.resolve(student.checkpoint.path) === path.resolve(job.out))
    throw new CoppiceError(`${job.out} is the student itself: choose another --out`);
  const { train: tokens, validation } = await openData(student.checkpoint.directory, job, job);
  const settings = trainOptionsFor(student.model, job.settings);
  const { distillation = {}, teacherOptions = {} } = job;
  const run = openRun(
    job.out,
    {
      command: "distill",
      teacher: job.teacher,
      student: job.student,
      data: tokens.id,
      settings,
      distillation,
      teacherOptions,
    },
    job.restart,
  );
  const stages = new Stages(run.file("stages.json"));
  return onDevice(job, async (backend) => {
    const before = await stages.once("measure student", () =>
      measure(backend, student.checkpoint.path, validation, "measure student", {
        ...job,
        sequenceLength: settings.sequenceLength,
      }),
    );
    const result = await stages.once("distill", () =>
      distillStage({
        ...{
          backend,
          stage: "distill",
          run,
          settings,
          validation,
          options: job,
          distillation,
          teacher: teacherOptions,
        },
        sequences: new Sequences(tokens, settings.sequenceLength),
        teacherPath: teacher.checkpoint.path,
        student: { model: student.model, source: student.checkpoint.source },
        ...(job.cacheDir !== undefined && { cacheDir: job.cacheDir }),
        write: (weights) =>
          writeCheckpoint(job.out, student.model.config, weights.source(), {
            dtype: storedType(student.checkpoint.source),
            carryFrom: student.checkpoint.directory,
          }),
      }),
    );
    return { ...(await finish(backend, run, stages, result, validation, settings.sequenceLength, job)), before };
  });
}
