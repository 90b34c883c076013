import path from "node:path";
import type { TensorSource } from "../checkpoint/index.js";
import { storedType } from "../checkpoint/stored-type.js";
import { agreeingTokens, checkVocabulary, Sequences, type TokenizerSide, type TokenStream } from "../data/index.js";
import {
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  distillationObjective,
  type RunDirectory,
  TopKTeacher,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { type Perplexity, perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import { loadWeights, type Model, type ModelWeights, openCheckpoint, writeModel } from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
import { UsageError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import { type OpenModel, onDevice, openData, openModel } from "./environment.js";
import { measure } from "./measure.js";
import { claim, dataInputs, inRun, modelIdentity, modelInput } from "./output.js";
import { checkLength, noteTraining } from "./sanity.js";
import { Stages } from "./stages.js";
import {
  finish,
  runTraining,
  type TrainingJob,
  type TrainingOutcome,
  type TrainStage,
  trainOptionsFor,
} from "./training.js";

/** How the teacher reaches the student. */
export interface TeacherOptions {
  /** Keep only the teacher's k most probable tokens; with `cache` they are computed once and kept on disk. */
  readonly topK?: number | undefined;
  readonly cache?: boolean | undefined;
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
    readonly cacheDir?: string | undefined;
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

export interface DistillJob extends TrainingJob {
  readonly teacher: string;
  readonly student: string;
  readonly distillation?: Partial<DistillationOptions> | undefined;
  readonly teacherOptions?: TeacherOptions | undefined;
}

const sideOf = (name: string, { checkpoint, model }: OpenModel): TokenizerSide => ({
  name,
  directory: checkpoint.directory,
  vocabSize: model.vocabSize,
});

/**
 * Distils one model into another of the same tokenizer. @throws UsageError with the first difference between them
 * @example
 * ```ts
 * import { distill, pruneModel } from "coppice";
 *
 * await pruneModel({ model: "./model", target: "0.67x", data: ["corpus.jsonl"], out: "./pruned" });
 * const { before, student } = await distill({
 *   teacher: "./model",
 *   student: "./pruned",
 *   data: ["corpus.jsonl"],
 *   settings: { tokens: 100e6 },
 *   distillation: { divergence: "forward-kl", temperature: 1 },
 *   out: "./smaller",
 * });
 * console.log(before.loss, student.loss);
 * ```
 */
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
        cacheDir,
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
