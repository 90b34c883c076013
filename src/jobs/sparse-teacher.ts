import path from "node:path";
import {
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  type SequenceSet,
  type SparseTargets,
  SparseTeacher,
  stepsOf,
  type TrainOptions,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { type Model, type ModelWeights, openCheckpoint } from "../models/index.js";
import { cacheDirectory } from "../system/files.js";
import { modelIdentity } from "./inputs.js";
import { sparseTargetsOf, type TeacherOptions } from "./teacher-options.js";

/** Which teacher a distillation has, and how it is used. Plain data: other processes get it, too. */
export interface TeacherRecipe {
  readonly teacherPath: string;
  /** The number of tokens that both models know, if it is smaller than the teacher's vocabulary. */
  readonly vocabSize?: number | undefined;
  readonly distillation: Partial<DistillationOptions>;
  readonly teacher: TeacherOptions;
  readonly cacheDir?: string | undefined;
}

/** Tokens that both models have. */
export const sharedVocabulary = (recipe: TeacherRecipe, model: Model): number =>
  Math.min(recipe.vocabSize ?? model.vocabSize, model.vocabSize);

/** How a teacher's distributions are used. */
export const distillationOf = (recipe: TeacherRecipe, vocabSize: number) => ({
  ...DISTILLATION_DEFAULTS,
  ...recipe.distillation,
  vocabSize,
});

/** What is kept of a teacher's distributions; undefined where they are used whole. */
export const targetsOf = (
  recipe: TeacherRecipe,
  { seed }: Pick<TrainOptions, "seed">,
  vocabSize: number,
): SparseTargets | undefined => sparseTargetsOf(recipe.teacher, { ...distillationOf(recipe, vocabSize), seed });

/** A training's data and settings, as they matter for what is kept of a teacher. */
export interface SparseTraining {
  readonly backend: Backend;
  readonly settings: TrainOptions;
  readonly sequences: SequenceSet;
}

/** @param load the teacher's weights, when they are needed */
export async function openSparseTeacher(
  recipe: TeacherRecipe,
  targets: SparseTargets,
  { backend, settings, sequences }: SparseTraining,
  load: () => ModelWeights,
): Promise<SparseTeacher> {
  const checkpoint = openCheckpoint(recipe.teacherPath);
  return new SparseTeacher(backend, load, sequences, {
    targets,
    computeType: settings.computeType,
    vocabSize: sharedVocabulary(recipe, checkpoint.model),
    expectedSequences: stepsOf(settings) * settings.batchSize,
    teacherId: await modelIdentity(checkpoint, recipe.cacheDir),
    cacheDirectory: recipe.teacher.cache ? path.join(cacheDirectory(recipe.cacheDir), "logits") : undefined,
  });
}
