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
import { countParameters, loadWeights, type Model, type ModelWeights } from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
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
import type { TeacherRecipe } from "./sparse-teacher.js";
import { Stages } from "./stages.js";
import { openTeacher } from "./teacher.js";
import { checkTeacherOptions, type TeacherOptions } from "./teacher-options.js";
import {
  finish,
  fittingBatch,
  runTraining,
  type TrainingJob,
  type TrainingOutcome,
  type TrainStage,
  trainOptionsFor,
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

export interface BriefDistillation {
  readonly backend: Backend;
  readonly teacher: ModelWeights;
  readonly pruned: PrunedModel;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly settings: TrainOptions;
  readonly options: JobOptions;
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
    const { microBatchSize } = fittingBatch({
      ...distillation,
      model: pruned.model,
      student,
      objective,
      teacherBytes,
      options: { ...options, ranks: undefined }, // the leader trains alone
    });
    const { signal } = options;
    await train({ backend, student, sequences, options: { ...settings, microBatchSize }, objective, signal });
    return (await perplexity(backend, student, validation, { sequenceLength, computeType })).loss;
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
        vocabSize,
        student: { model: student.model, source },
        cacheDir,
        write: (weights) =>
          writeTrained(job.out, student.checkpoint, weights, { onNote: job.onNote, place: (name) => run.own(name) }),
      }),
    );
    const outcome = await finish({ backend, run, stages, result, validation, sequenceLength, job });
    return { ...outcome, before };
  });
}
