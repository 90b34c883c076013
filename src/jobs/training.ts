import { existsSync } from "node:fs";
import path from "node:path";
import { readConfigJson } from "../checkpoint/config-json.js";
import { floatSource, type TensorSource } from "../checkpoint/index.js";
import { agreeingTokens, checkVocabulary, Sequences, type TokenizerSide, type TokenStream } from "../data/index.js";
import {
  checkTrainOptions,
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  defaultTrainOptions,
  distillationObjective,
  type Objective,
  type RunDirectory,
  TopKTeacher,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { defaultSequenceLength, type Perplexity, perplexity } from "../evaluate/index.js";
import type { Backend, FloatDType } from "../ggml/index.js";
import {
  type Checkpoint,
  type ConfigJson,
  countParameters,
  initialise,
  loadWeights,
  type Model,
  type ModelWeights,
  modelFromConfig,
  openCheckpoint,
  writeModel,
} from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
import { UsageError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import { type DataOptions, type JobOptions, type OpenModel, onDevice, openData, openModel } from "./environment.js";
import { type Measurement, measure } from "./measure.js";
import { claim, dataInputs, inRun, modelIdentity, modelInput } from "./output.js";
import { writeReport } from "./report.js";
import { checkLength, noteTraining } from "./sanity.js";
import { Stages } from "./stages.js";

/** Training settings that a user may set; the rest have defaults that suit the model. */
export type TrainSettings = Partial<Omit<TrainOptions, "tokens">> & { readonly tokens: number };

/** Sequences per step where nothing is said. */
const DEFAULT_BATCH_TOKENS = 4096;

/** Completes settings for a model. @throws UsageError for those that cannot be */
export function trainOptionsFor(model: Model, settings: TrainSettings): TrainOptions {
  const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
  const sequenceLength = settings.sequenceLength ?? Math.min(256, defaultSequenceLength(model));
  const batchSize = settings.batchSize ?? Math.max(1, Math.round(DEFAULT_BATCH_TOKENS / sequenceLength));
  const defaults = defaultTrainOptions(model.sizes.hidden ?? 1, settings.tokens, sequenceLength, batchSize);
  const learningRate = settings.learningRate ?? defaults.learningRate;
  const options = { ...defaults, minimumLearningRate: learningRate / 10, ...given };
  checkTrainOptions(options);
  checkLength(options.sequenceLength, model);
  return options;
}

/** How the teacher reaches the student. */
export interface TeacherOptions {
  /** Keep only the teacher's k most probable tokens; with `cache` they are computed once and kept on disk. */
  readonly topK?: number;
  readonly cache?: boolean;
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
    onProgress: ({ record, totalTokens }) =>
      options.onProgress?.({
        stage: stage.stage,
        done: record.tokens,
        total: totalTokens,
        unit: "tokens",
        detail: `loss ${record.loss.toFixed(3)}`,
      }),
    onNote: options.onNote,
    ...(options.signal && { signal: options.signal }),
  });
}

/** Distils a teacher into a student. @returns the trained weights, to be written */
export async function distillStage(
  stage: Omit<TrainStage, "objective" | "student" | "model"> & {
    readonly teacherPath: string;
    /** Tokens that both know, where that is not every row of both heads. */
    readonly tokens?: number | undefined;
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
  const vocabSize = Math.min(stage.tokens ?? teacherModel.vocabSize, teacherModel.vocabSize);
  checkVocabulary(sequences.stream, vocabSize);
  let loadedTeacher: ModelWeights | undefined;
  const teacherWeights = (): ModelWeights => {
    const dtype = settings.computeType;
    loadedTeacher ??= loadWeights(backend, teacherModel, teacherCheckpoint.source, { dtype, trainable: false });
    return loadedTeacher;
  };
  const options = { ...DISTILLATION_DEFAULTS, ...stage.distillation, vocabSize };
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
          k: Math.min(topK, vocabSize),
          temperature: options.temperature,
          computeType: settings.computeType,
          vocabSize,
          expectedSequences: Math.ceil(settings.tokens / settings.sequenceLength),
          teacherId: await modelIdentity(teacherCheckpoint, stage.cacheDir),
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
  readonly restart?: boolean | undefined;
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

/** What a model is trained from: its files, or from scratch its configuration and tokenizer. */
interface Start {
  readonly checkpoint: Checkpoint | undefined;
  readonly directory: string;
  readonly config: ConfigJson;
}

async function startOf(job: PretrainJob): Promise<Start> {
  if (job.fromScratch === true) {
    const file = path.join(job.model, "config.json");
    if (!existsSync(file)) throw new UsageError(`${job.model} has no config.json to start from`);
    return { checkpoint: undefined, directory: job.model, config: readConfigJson(file) };
  }
  const { checkpoint } = await openModel(job.model, job);
  return { checkpoint, directory: checkpoint.directory, config: checkpoint.config };
}

/** Trains a model on the next token of data: from scratch, or going on from its weights. */
export async function pretrain(job: PretrainJob): Promise<TrainingOutcome> {
  const start = await startOf(job);
  const { checkpoint, directory } = start;
  const files = checkpoint ?? { path: directory, directory, files: [] };
  return inRun(job, [...modelInput("the model", files), ...(await dataInputs(job))], async (run) => {
    const model = modelFromConfig(start.config);
    const settings = trainOptionsFor(model, job.settings);
    const { train: tokens, validation } = await openData({ directory, model }, job, job);
    checkVocabulary(tokens, model.vocabSize);
    noteTraining(settings, tokens, job);
    const dtype = job.dtype ?? (checkpoint === undefined ? "bf16" : storedType(checkpoint.source));
    claim(run, job, {
      command: "pretrain",
      inputs: { model: await modelIdentity(files, job.cacheDir), data: tokens.id, validation: validation.id },
      fromScratch: job.fromScratch === true,
      settings,
      dtype,
    });
    const stages = new Stages(run.own("stages.json"));
    return onDevice(job, async (backend) => {
      const result = await stages.once("pretrain", () =>
        pretrainStage(start, dtype, {
          backend,
          stage: "pretrain",
          run,
          model,
          sequences: new Sequences(tokens, settings.sequenceLength),
          settings,
          validation,
          options: job,
        }),
      );
      return finish(backend, run, stages, result, validation, settings.sequenceLength, job);
    });
  });
}

/** Trains on the next token and writes the result into the run's directory. */
async function pretrainStage(
  { checkpoint, directory }: Start,
  dtype: FloatDType,
  stage: Omit<TrainStage, "student" | "objective">,
): Promise<TrainResult> {
  const { backend, model, run, settings } = stage;
  const student =
    checkpoint === undefined
      ? initialise(backend, model, settings.seed)
      : loadWeights(backend, model, checkpoint.source, { dtype: "f32", trainable: true });
  try {
    const outcome = await runTraining({ ...stage, student, objective: crossEntropyObjective });
    writeModel(
      run.path,
      { ...(checkpoint ?? { model }), source: student.source() },
      { dtype, carryFrom: directory, place: (name) => run.own(name), onNote: stage.options.onNote },
    );
    return outcome;
  } finally {
    student.free();
  }
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
  run.finish();
  return outcome;
}

export interface DistillJob extends TrainingJob {
  readonly teacher: string;
  readonly student: string;
  readonly distillation?: Partial<DistillationOptions>;
  readonly teacherOptions?: TeacherOptions;
}

const sideOf = (name: string, { checkpoint, model }: OpenModel): TokenizerSide => ({
  name,
  directory: checkpoint.directory,
  vocabSize: model.vocabSize,
});

/** Distils one model into another of the same tokenizer. @throws UsageError with the first difference between them */
export async function distill(job: DistillJob): Promise<TrainingOutcome & { readonly before: Perplexity }> {
  const teacher = await openModel(job.teacher, job);
  const student = await openModel(job.student, job);
  const inputs = [
    ...modelInput("the teacher", teacher.checkpoint),
    ...modelInput("the student", student.checkpoint),
    ...(await dataInputs(job)),
  ];
  const agreement = await agreeingTokens(sideOf("the teacher", teacher), sideOf("the student", student));
  for (const note of agreement.notes) job.onNote?.(note);
  return inRun(job, inputs, (run) => distillIn(run, job, teacher, student, agreement.tokens));
}

async function distillIn(
  run: RunDirectory,
  job: DistillJob,
  teacher: OpenModel,
  student: OpenModel,
  vocabulary: number,
) {
  const { directory, source } = student.checkpoint;
  const settings = trainOptionsFor(student.model, job.settings);
  checkLength(settings.sequenceLength, teacher.model, "the teacher");
  const { train: tokens, validation } = await openData({ directory, model: student.model }, job, job);
  noteTraining(settings, tokens, job);
  const { distillation = {}, teacherOptions = {}, cacheDir } = job;
  const inputs = {
    teacher: await modelIdentity(teacher.checkpoint, cacheDir),
    student: await modelIdentity(student.checkpoint, cacheDir),
    data: tokens.id,
    validation: validation.id,
  };
  claim(run, job, { command: "distill", inputs, settings, distillation, teacherOptions });
  const stages = new Stages(run.own("stages.json"));
  return onDevice(job, async (backend) => {
    const { sequenceLength } = settings;
    const before = await stages.once("measure student", () =>
      measure(backend, student.checkpoint.path, validation, "measure student", { ...job, sequenceLength }),
    );
    const result = await stages.once("distill", () =>
      distillStage({
        backend,
        stage: "distill",
        run,
        settings,
        validation,
        options: job,
        distillation,
        teacher: teacherOptions,
        sequences: new Sequences(tokens, sequenceLength),
        teacherPath: teacher.checkpoint.path,
        tokens: vocabulary,
        student: { model: student.model, source },
        ...(cacheDir !== undefined && { cacheDir }),
        write: (weights) =>
          writeModel(
            job.out,
            { ...student.checkpoint, source: weights.source() },
            { dtype: storedType(source), carryFrom: directory, place: (name) => run.own(name), onNote: job.onNote },
          ),
      }),
    );
    return { ...(await finish(backend, run, stages, result, validation, sequenceLength, job)), before };
  });
}
