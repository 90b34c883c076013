import { existsSync } from "node:fs";
import {
  crossEntropyObjective,
  followTraining,
  type RunDirectory,
  type SequenceSet,
  sharedOptions,
  type TrainOptions,
} from "../../distill/index.js";
import { type DeviceChoice, deviceChoice } from "../../ggml/index.js";
import { blankWeights, type ConfigJson, countParameters, type Model, modelFromConfig } from "../../models/index.js";
import type { Ranks } from "../../ranks/index.js";
import { CoppiceError } from "../../system/errors.js";
import { type JobOptions, onDevice } from "../job.js";
import { checkTrainable } from "../model-memory.js";
import type { TeacherRecipe } from "../sparse-teacher.js";
import { openTeacher } from "../teacher.js";
import { type NamedModel, namedModel, openShared } from "./same-model.js";

/** What a follower must know to train along. */
interface SharedTraining {
  readonly kind: "train";
  readonly device: DeviceChoice;
  readonly config: ConfigJson;
  readonly settings: TrainOptions;
  readonly recipe?: TeacherRecipe | undefined;
  /** Of the teacher, where there is one. */
  readonly teacher?: NamedModel | undefined;
  readonly sequences: SequenceSet;
  /** Of the run, which all will read the trained model from. */
  readonly directory: string;
  readonly memoryBytes?: number | undefined;
}

/** A training as its leader sees it. */
export interface LedTraining extends Pick<SharedTraining, "settings" | "recipe" | "sequences"> {
  readonly model: Model;
  readonly run: RunDirectory;
  readonly options: JobOptions;
}

/** Refuses a training that the job's processes cannot share, before anything that takes long. @throws UsageError saying why */
export function checkShared(settings: TrainOptions, { ranks }: Pick<JobOptions, "ranks">): void {
  if (ranks !== undefined) sharedOptions(settings, ranks.size);
}

/** Runs a training while the other processes of the job, if there are any, follow it. */
export async function withFollowers<T>(training: LedTraining, train: () => Promise<T>): Promise<T> {
  const { options, model, settings, recipe, sequences, run } = training;
  const { ranks, memoryBytes } = options;
  if (ranks === undefined) return train();
  const { count, length, stream } = sequences;
  const task: SharedTraining = {
    kind: "train",
    device: deviceChoice(options),
    config: model.config,
    settings,
    recipe,
    teacher: recipe && namedModel(recipe.teacherPath),
    sequences: { count, length, stream: { id: stream.id } },
    directory: run.path,
    memoryBytes,
  };
  ranks.postAll({ ...task });
  try {
    return await train();
  } finally {
    if (!ranks.busy) ranks.postAll({ kind: "end" });
  }
}

/** A follower's part in a training. @param message of the leader */
export async function joinTraining(ranks: Ranks, message: unknown): Promise<void> {
  const { device, config, settings, recipe, sequences, memoryBytes, teacher: theirs } = message as SharedTraining;
  if (theirs !== undefined) openShared(theirs);
  const { directory } = message as SharedTraining;
  if (!existsSync(directory))
    throw new CoppiceError(
      `there is no ${directory} here: all processes must see --out, where the trained model is measured`,
    );
  await onDevice({ ...device, ranks }, async (backend) => {
    const model = modelFromConfig(config);
    const studentParameters = countParameters(model.parameters, model.sizes);
    checkTrainable(backend, studentParameters, settings, { memoryBytes, ranks });
    const taught = { backend, settings, studentParameters, sequences, options: { memoryBytes, ranks } };
    const teacher = recipe === undefined ? undefined : await openTeacher(recipe, taught);
    const student = blankWeights(backend, model);
    const objective = teacher?.objective ?? crossEntropyObjective;
    try {
      await followTraining({ backend, student, objective, options: sharedOptions(settings, ranks.size), ranks });
    } finally {
      student.free();
      teacher?.free();
    }
  });
}
