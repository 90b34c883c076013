import type { TensorSource } from "../checkpoint/index.js";
import { agreeingTokens, Sequences, type TokenizerSide, type TokenStream } from "../data/index.js";
import {
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  distillationObjective,
  type RunDirectory,
  type TrainOptions,
  type TrainResult,
  train,
} from "../distill/index.js";
import { type Perplexity, perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import {
  countParameters,
  loadWeights,
  type Model,
  type ModelTensors,
  type ModelWeights,
  openCheckpoint,
  wholeWeights,
} from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
import { CoppiceError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import { dataInputs, modelIdentity, modelInput } from "./inputs.js";
import { type JobOptions, onDevice } from "./job.js";
import { measure } from "./measure.js";
import { checkTrainable, trainableWeights } from "./model-memory.js";
import { openData } from "./open-data.js";
import { type OpenModel, openModel } from "./open-model.js";
import { claim, inRun } from "./output.js";
import { checkLength, noteTraining } from "./sanity.js";
import { checkShared } from "./shared/training.js";
import { sharedVocabulary, type TeacherRecipe, targetsOf } from "./sparse-teacher.js";
import { Stages } from "./stages.js";
import { openTeacher, streamedTeacher } from "./teacher.js";
import { checkTeacherOptions, type TeacherOptions } from "./teacher-options.js";
import {
  checkTrainingFits,
  finish,
  type PlannedTraining,
  runTraining,
  type TrainingJob,
  type TrainingOutcome,
  type TrainStage,
  trainOptionsFor,
  withFittingBatch,
  writeTrained,
} from "./training.js";

export interface DistillStage
  extends Omit<TrainStage, "objective" | "recipe" | "teacherBytes" | "student" | "model">,
    TeacherRecipe {
  readonly student: { readonly model: Model; readonly source: TensorSource };
  /** Writes the trained weights. */
  readonly write: (weights: ModelWeights) => void;
}

/** Distills a teacher into a student. @throws UsageError for options that do not go together */
export async function distillStage(stage: DistillStage): Promise<TrainResult> {
  const { backend, student, teacherPath, vocabSize, distillation, teacher: teacherOptions } = stage;
  const cacheDir = cacheDirectory(stage.cacheDir); // that of this process, for all of the job
  const recipe = { teacherPath, vocabSize, distillation, teacher: teacherOptions, cacheDir };
  const studentParameters = countParameters(student.model.parameters, student.model.sizes);
  checkTrainable(backend, studentParameters, stage.settings, stage.options);
  const teacher = await openTeacher(recipe, { ...stage, studentParameters });
  let weights: ModelWeights | undefined;
  try {
    weights = trainableWeights(backend, student, stage.settings, stage.options);
    const { objective, bytes: teacherBytes } = teacher;
    const { model } = student;
    const result = await runTraining({ ...stage, model, student: weights, objective, recipe, teacherBytes });
    stage.write(weights);
    return result;
  } finally {
    weights?.free();
    teacher.free();
  }
}

/** A distillation that is to come. */
export interface PlannedDistillation extends Pick<PlannedTraining, "backend" | "settings" | "options"> {
  readonly student: Model;
  readonly recipe: TeacherRecipe;
  /**
   * Where candidates are distilled briefly before: by one process, beside the whole teacher and, where that is another, the model that
   * they are cut from.
   */
  readonly search?: { readonly original: ModelTensors | undefined } | undefined;
}

/**
 * Checks that a student and its teacher will fit in memory, before anything that takes long.
 * @throws CoppiceError with what they would take, and what makes them fit
 */
export function checkDistillationFits(planned: PlannedDistillation): void {
  const { backend, student, recipe, settings, options, search } = planned;
  const teacher = openCheckpoint(recipe.teacherPath);
  const studentParameters = countParameters(student.parameters, student.sizes);
  checkTrainable(backend, studentParameters, settings, options);
  const streamed = streamedTeacher(backend, teacher, {
    studentParameters,
    training: settings,
    computeType: settings.computeType,
    isCached: recipe.teacher.cache === true,
    options,
  });
  checkTrainingFits({
    backend,
    model: student,
    settings,
    options,
    teacher: streamed === undefined ? teacher : undefined,
    isSparse: targetsOf(recipe, settings, sharedVocabulary(recipe, teacher.model)) !== undefined,
    intermediate: recipe.distillation.intermediate,
  });
  if (search === undefined) return;
  if (streamed !== undefined) wholeWeights(streamed, BRIEF_DISTILLATION);
  const alone = { ...options, ranks: undefined };
  checkTrainingFits({ backend, model: student, settings, options: alone, teacher, beside: search.original });
}

/** What a model has to be in memory for. */
export const BRIEF_DISTILLATION = "ranking candidates by short distillations (--search-tokens)";

export interface BriefDistillation {
  readonly backend: Backend;
  readonly teacher: ModelWeights;
  readonly pruned: PrunedModel;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly settings: TrainOptions;
  readonly options: JobOptions;
  /** Keeps what a killed process goes on from, where the disk has room for it. */
  readonly run?: RunDirectory | undefined;
}

/** The validation loss of a pruned model after a short distillation, whose weights are discarded. */
export async function distillBriefly(distillation: BriefDistillation): Promise<number> {
  const { backend, teacher, pruned, tokens, validation, settings, options } = distillation;
  const { sequenceLength, computeType } = settings;
  const student = loadWeights(backend, pruned.model, pruned.source, { dtype: "f32", trainable: true });
  try {
    const objective = distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
    const sequences = new Sequences(tokens, sequenceLength);
    const teacherBytes = teacher.store.byteLength;
    const { run } = distillation;
    const fitting = withFittingBatch({
      ...distillation,
      model: pruned.model,
      student,
      objective,
      teacherBytes,
      options: { ...options, ranks: undefined }, // the leader trains alone
    });
    const { signal } = options;
    const saving = { ...fitting, saveEverySteps: Number.POSITIVE_INFINITY }; // now and then is enough
    const kept = run?.hasCheckpoint === true || hasRoom(run, pruned.model) ? run : undefined;
    await train({ backend, student, sequences, options: saving, objective, signal, run: kept });
    const { loss } = await perplexity(backend, student, validation, { sequenceLength, computeType });
    run?.drop("");
    return loss;
  } finally {
    student.free();
  }
}

function hasRoom(run: RunDirectory | undefined, { parameters, sizes }: Model): boolean {
  try {
    run?.checkRoom(countParameters(parameters, sizes));
    return true;
  } catch (error) {
    if (error instanceof CoppiceError) return false;
    throw error;
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
 * Distills one model into another with the same tokenizer.
 * @throws UsageError naming the first difference between the tokenizers, and for settings or places that do not fit
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
  checkTeacherOptions(job.teacherOptions ?? {}, job.distillation ?? {});
  const teacher = await openModel(job.teacher, job);
  const student = await openModel(job.student, job);
  const inputs = [
    ...modelInput("the teacher", teacher.checkpoint),
    ...modelInput("the student", student.checkpoint),
    ...(await dataInputs(job)),
  ];
  const agreement = await agreeingTokens(sideOf("the teacher", teacher), sideOf("the student", student));
  for (const note of agreement.notes) job.onNote?.(note);
  return inRun(job, inputs, (run) => distillIn(run, job, { teacher, student, vocabSize: agreement.tokens }));
}

interface Models {
  readonly teacher: OpenModel;
  readonly student: OpenModel;
  /** The number of tokens that both know. */
  readonly vocabSize: number;
}

async function distillIn(run: RunDirectory, job: DistillJob, { teacher, student, vocabSize }: Models) {
  const { directory, source } = student.checkpoint;
  const settings = trainOptionsFor(student.model, job.settings);
  checkLength(settings.sequenceLength, teacher.model, "the teacher");
  const { train: tokens, validation } = await openData({ directory, model: student.model }, job, job);
  checkShared(settings, job);
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
    const recipe = { teacherPath: teacher.checkpoint.path, vocabSize, distillation, teacher: teacherOptions, cacheDir };
    if (!stages.has("distill"))
      checkDistillationFits({ backend, student: student.model, recipe, settings, options: job });
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
        ...recipe,
        sequences: new Sequences(tokens, sequenceLength),
        student: { model: student.model, source },
        write: (weights) =>
          writeTrained(job.out, student.checkpoint, weights, { onNote: job.onNote, place: (name) => run.own(name) }),
      }),
    );
    const outcome = await finish({ backend, run, stages, result, validation, sequenceLength, job });
    return { ...outcome, before };
  });
}
