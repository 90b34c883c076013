import path from "node:path";
import type { TensorSource } from "../checkpoint/index.js";
import {
  agreeingTokens,
  checkVocabulary,
  Sequences,
  type TokenizerSide,
  type TokenStream,
  TrainingOrder,
} from "../data/index.js";
import {
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  distillationObjective,
  type Objective,
  type RunDirectory,
  SparseTeacher,
  stepsOf,
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
  type StreamedWeights,
  streamedIfLarge,
} from "../models/index.js";
import type { PrunedModel } from "../prune/index.js";
import { CoppiceError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import type { ComputeType } from "../tensor/index.js";
import { dataInputs, modelIdentity, modelInput } from "./inputs.js";
import { onDevice } from "./job.js";
import { measure } from "./measure.js";
import { checkTrainable, describeMemory, trainableWeights, trainingBytes } from "./model-memory.js";
import { openData } from "./open-data.js";
import { type OpenModel, openModel } from "./open-model.js";
import { claim, inRun } from "./output.js";
import { checkLength, noteTraining } from "./sanity.js";
import { Stages } from "./stages.js";
import { checkTeacherOptions, sparseTargetsOf, type TeacherOptions } from "./teacher-options.js";
import {
  finish,
  runTraining,
  type TrainingJob,
  type TrainingOutcome,
  type TrainStage,
  trainOptionsFor,
  writeTrained,
} from "./training.js";

export interface DistillStage extends Omit<TrainStage, "objective" | "student" | "model"> {
  readonly teacherPath: string;
  /** The number of tokens that both models know, if it is smaller than the teacher's vocabulary. */
  readonly vocabSize?: number | undefined;
  readonly student: { readonly model: Model; readonly source: TensorSource };
  readonly distillation: Partial<DistillationOptions>;
  readonly teacher: TeacherOptions;
  readonly cacheDir?: string | undefined;
  /** Writes the trained weights. */
  readonly write: (weights: ModelWeights) => void;
}

/** Distills a teacher into a student. @throws UsageError for options that do not go together */
export async function distillStage(stage: DistillStage): Promise<TrainResult> {
  const { backend, student } = stage;
  const parameters = countParameters(student.model.parameters, student.model.sizes);
  checkTrainable(backend, parameters, stage.options);
  const teacher = await openTeacher(stage);
  const weights = trainableWeights(backend, student, stage.options);
  try {
    const { objective } = teacher;
    const result = await runTraining({ ...stage, model: student.model, student: weights, objective });
    stage.write(weights);
    return result;
  } finally {
    weights.free();
    teacher.free();
  }
}

/** A teacher, and what it has to fit in memory beside. */
export interface TeacherPlace {
  readonly studentParameters: number;
  readonly computeType: ComputeType;
  /** Whether its predictions are kept on disk. */
  readonly isCached: boolean;
  readonly memoryBytes?: number | undefined;
}

/**
 * The weights of a teacher that does not fit in memory beside its student, to be streamed; undefined where it fits.
 * @throws CoppiceError where its predictions are not kept, so that it would have to be in memory
 */
export function streamedTeacher(
  backend: Backend,
  teacher: ModelTensors,
  { studentParameters, computeType, isCached, memoryBytes }: TeacherPlace,
): StreamedWeights | undefined {
  const left = Math.max(0, (memoryBytes ?? backend.freeBytes()) - trainingBytes(studentParameters));
  const streamed = streamedIfLarge(backend, teacher, { dtype: computeType, memoryBytes: left });
  if (streamed !== undefined && !isCached)
    throw new CoppiceError(
      `the teacher does not fit in ${describeMemory(memoryBytes)} beside its student: --teacher-cache computes its predictions beforehand, layer by layer, or --memory tells that there is more`,
    );
  return streamed;
}

/** Prepares the objective of a distillation. The teacher's weights are loaded only if its logits are not all cached. */
async function openTeacher(stage: DistillStage): Promise<{ readonly objective: Objective; readonly free: () => void }> {
  const { backend, settings, sequences } = stage;
  const { computeType } = settings;
  const checkpoint = openCheckpoint(stage.teacherPath);
  const { model, source } = checkpoint;
  const { parameters, sizes } = stage.student.model;
  const streamed = streamedTeacher(backend, checkpoint, {
    studentParameters: countParameters(parameters, sizes),
    computeType,
    isCached: stage.teacher.cache === true,
    memoryBytes: stage.options.memoryBytes,
  });
  const vocabSize = Math.min(stage.vocabSize ?? model.vocabSize, model.vocabSize);
  checkVocabulary(sequences.stream, vocabSize);
  let weights: ModelWeights | undefined;
  const loadTeacher = (): ModelWeights => {
    weights ??= loadWeights(backend, model, source, { dtype: computeType, trainable: false });
    return weights;
  };
  const options = { ...DISTILLATION_DEFAULTS, ...stage.distillation, vocabSize };
  const targets = sparseTargetsOf(stage.teacher, { ...options, vocabSize, seed: settings.seed });
  if (targets === undefined) {
    const objective = distillationObjective({ kind: "online", weights: loadTeacher() }, options);
    return { objective, free: () => weights?.free() };
  }
  const sparse = new SparseTeacher(backend, loadTeacher, sequences, {
    targets,
    computeType,
    vocabSize,
    expectedSequences: Math.ceil(settings.tokens / settings.sequenceLength),
    teacherId: await modelIdentity(checkpoint, stage.cacheDir),
    cacheDirectory: stage.teacher.cache ? path.join(cacheDirectory(stage.cacheDir), "logits") : undefined,
  });
  if (streamed !== undefined) {
    const { firstSequence = 0, options: job } = stage;
    const numbers = new TrainingOrder(sequences.count, settings.seed).range(
      firstSequence,
      stepsOf(settings) * settings.batchSize,
    );
    await sparse.fillCache(streamed, numbers, {
      signal: job.signal,
      onProgress: (done, total) => job.onProgress?.({ stage: "teacher's logits", done, total, unit: "sequences" }),
    });
  }
  const { divergence } = targets;
  return {
    objective: distillationObjective({ kind: "sparse", source: sparse }, { ...options, divergence }),
    free: () => {
      sparse.free();
      weights?.free();
    },
  };
}

export interface BriefDistillation {
  readonly backend: Backend;
  readonly teacher: ModelWeights;
  readonly pruned: PrunedModel;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly settings: TrainOptions;
}

/** The validation loss of a pruned model after a short distillation, whose weights are discarded. */
export async function distillBriefly(distillation: BriefDistillation): Promise<number> {
  const { backend, teacher, pruned, tokens, validation, settings } = distillation;
  const { sequenceLength, computeType } = settings;
  const student = loadWeights(backend, pruned.model, pruned.source, { dtype: "f32", trainable: true });
  try {
    const objective = distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
    const sequences = new Sequences(tokens, sequenceLength);
    await train({ backend, student, sequences, options: settings, objective });
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
