import { checkVocabulary, Sequences, TrainingOrder } from "../data/index.js";
import {
  distillationObjective,
  type Objective,
  type SequenceSet,
  type SparseTeacher,
  stepsOf,
  type TrainOptions,
} from "../distill/index.js";
import type { Backend, DeviceChoice } from "../ggml/index.js";
import {
  bytesOnDevice,
  loadWeights,
  type ModelTensors,
  type ModelWeights,
  openCheckpoint,
  type StreamedWeights,
  streamedIfLarge,
  typesOn,
} from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import type { ComputeType } from "../tensor/index.js";
import type { JobOptions } from "./job.js";
import { describeMemory, memoryForTraining, sharersOf, type TrainingMemory, trainingBytes } from "./model-memory.js";
import { sharedLogits } from "./shared/logits.js";
import {
  distillationOf,
  openSparseTeacher,
  sharedVocabulary,
  type TeacherRecipe,
  targetsOf,
} from "./sparse-teacher.js";

/** Of what its student's weights leave, a teacher whose predictions are kept has this share: the rest is for activations. */
const CACHED_SHARE = 0.5;

/** What a teacher has to fit in memory beside. */
export interface TeacherPlace {
  readonly studentParameters: number;
  /** Of the student's training. */
  readonly training: TrainingMemory;
  readonly computeType: ComputeType;
  /** Whether its predictions are kept on disk. */
  readonly isCached: boolean;
  readonly options: Pick<JobOptions, "memoryBytes" | "ranks">;
}

/**
 * The weights of a teacher that does not fit in memory beside its student, to be streamed; undefined where it fits.
 * @throws CoppiceError where its predictions are not kept, so that it would have to be in memory
 */
export function streamedTeacher(
  backend: Backend,
  teacher: ModelTensors,
  { studentParameters, training, computeType, isCached, options }: TeacherPlace,
): StreamedWeights | undefined {
  const taken = trainingBytes(studentParameters, training, sharersOf(backend, options));
  const left = Math.max(0, memoryForTraining(backend, options) - taken);
  const memoryBytes = (isCached ? CACHED_SHARE : 1) * left;
  const streamed = streamedIfLarge(backend, teacher, { dtype: computeType, memoryBytes });
  if (streamed !== undefined && !isCached)
    throw new CoppiceError(
      `the teacher does not fit in ${describeMemory(options.memoryBytes)} beside its student: --teacher-cache computes its predictions beforehand, layer by layer, or --memory tells that there is more`,
    );
  return streamed;
}

/** A training in which a teacher is used. */
export interface TaughtTraining {
  readonly backend: Backend;
  readonly settings: TrainOptions;
  readonly studentParameters: number;
  /** The data; only the leader of several processes has its tokens. */
  readonly sequences: SequenceSet | Sequences;
  readonly firstSequence?: number | undefined;
  readonly options: DeviceChoice & Pick<JobOptions, "memoryBytes" | "ranks" | "signal" | "onProgress">;
}

export interface OpenTeacher {
  readonly objective: Objective;
  /** Memory that the teacher's weights take, or will take when they are needed. */
  readonly bytes: number;
  readonly free: () => void;
}

/** Prepares the objective of a distillation. The teacher's weights are loaded only if its logits are not all cached. */
export async function openTeacher(recipe: TeacherRecipe, training: TaughtTraining): Promise<OpenTeacher> {
  const { backend, settings, sequences } = training;
  const { computeType } = settings;
  const checkpoint = openCheckpoint(recipe.teacherPath);
  const { model, source } = checkpoint;
  const streamed = streamedTeacher(backend, checkpoint, {
    studentParameters: training.studentParameters,
    training: settings,
    computeType,
    isCached: recipe.teacher.cache === true,
    options: training.options,
  });
  const vocabSize = sharedVocabulary(recipe, model);
  if (sequences instanceof Sequences) checkVocabulary(sequences.stream, vocabSize);
  let weights: ModelWeights | undefined;
  const bytes = streamed === undefined ? bytesOnDevice(model, source, typesOn(backend, computeType)) : 0;
  const loadTeacher = (): ModelWeights => {
    if (streamed !== undefined && !(sequences instanceof Sequences))
      throw new CoppiceError(
        `the teacher's predictions are not in ${recipe.cacheDir}: all processes of the job must see this cache of the first one`,
      );
    weights ??= loadWeights(backend, model, source, { dtype: computeType, trainable: false });
    return weights;
  };
  const options = distillationOf(recipe, vocabSize);
  const targets = targetsOf(recipe, settings, vocabSize);
  if (targets === undefined) {
    const objective = distillationObjective({ kind: "online", weights: loadTeacher() }, options);
    return { objective, bytes, free: () => weights?.free() };
  }
  const sparse = await openSparseTeacher(recipe, targets, training, loadTeacher);
  if (streamed !== undefined && sequences instanceof Sequences)
    await fillCache(sparse, streamed, recipe, { ...training, sequences });
  const { divergence } = targets;
  return {
    objective: distillationObjective({ kind: "sparse", source: sparse }, { ...options, divergence }),
    bytes,
    free: () => {
      sparse.free();
      weights?.free();
    },
  };
}

/** Computes all predictions that a training needs of a teacher that does not fit in memory. */
async function fillCache(
  sparse: SparseTeacher,
  teacher: StreamedWeights,
  recipe: TeacherRecipe,
  { settings, sequences, firstSequence = 0, options }: TaughtTraining & { readonly sequences: Sequences },
): Promise<void> {
  const order = new TrainingOrder(sequences.count, settings.seed);
  const numbers = order.range(firstSequence, stepsOf(settings) * settings.batchSize);
  if (options.ranks !== undefined)
    return sharedLogits(options.ranks, { sparse, teacher, recipe, settings, sequences, numbers, options });
  await sparse.fillCache(teacher, (wanted) => sequences.batch(wanted).tokens, numbers, {
    signal: options.signal,
    onProgress: (done, total) => options.onProgress?.({ stage: "teacher's logits", done, total, unit: "sequences" }),
  });
}
