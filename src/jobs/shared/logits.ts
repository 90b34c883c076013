import { setTimeout as wait } from "node:timers/promises";
import type { Sequences } from "../../data/index.js";
import type { SequenceSet, SparseTeacher, TrainOptions } from "../../distill/index.js";
import type { DeviceChoice } from "../../ggml/index.js";
import { type StreamedWeights, streamedWeights } from "../../models/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import { CoppiceError, required } from "../../system/errors.js";
import { type JobOptions, onDevice } from "../job.js";
import { memoryFor } from "../model-memory.js";
import { openSparseTeacher, sharedVocabulary, type TeacherRecipe, targetsOf } from "../sparse-teacher.js";
import { type SharedModel, sharedModel } from "./model.js";
import { openShared } from "./same-model.js";

/** What a follower must know to compute a part of a teacher's predictions. */
interface LogitsTask extends SharedModel {
  readonly recipe: TeacherRecipe;
  readonly settings: TrainOptions;
  readonly sequences: SequenceSet;
  readonly numbers: readonly number[];
}

/** What the leader fills the cache with. */
export interface SharedFill {
  readonly sparse: SparseTeacher;
  readonly teacher: StreamedWeights;
  readonly recipe: TeacherRecipe;
  readonly settings: TrainOptions;
  readonly sequences: Sequences;
  /** Of the sequences that are needed. */
  readonly numbers: readonly number[];
  readonly options: DeviceChoice & Pick<JobOptions, "memoryBytes" | "signal" | "onProgress">;
}

/** So often the leader looks for what others computed: a network file system may show it late. */
const [LOOKS, SECONDS_BETWEEN] = [40, 2];

/** Puts a teacher's predictions of sequences into the cache, each rank a part of them. */
export async function sharedLogits(ranks: Ranks, fill: SharedFill): Promise<void> {
  const { sparse, teacher, recipe, settings, sequences, options } = fill;
  const { count, length, stream } = sequences;
  const missing = sparse.missing(fill.numbers);
  if (missing.length === 0) return;
  const known = new Set(fill.numbers).size - missing.length;
  await ranks.together(async () => {
    for (let to = 1; to < ranks.size; to++) {
      const numbers = missing.slice(...ranks.share(missing.length, to));
      const task: LogitsTask = {
        ...sharedModel(recipe.teacherPath, settings.computeType, options),
        recipe,
        settings,
        sequences: { count, length, stream: { id: stream.id } },
        numbers,
      };
      ranks.post({ kind: "logits", ...task }, to);
      if (numbers.length > 0) ranks.sendData(sequences.batch(numbers).tokens, to);
    }
    const own = missing.slice(...ranks.share(missing.length));
    await sparse.fillCache(teacher, (numbers) => sequences.batch(numbers).tokens, own, {
      signal: options.signal,
      onProgress: (done) =>
        options.onProgress?.({
          stage: "teacher's logits",
          done: known + Math.min(missing.length, done * ranks.size),
          total: known + missing.length,
          unit: "sequences",
        }),
    });
    for (let from = 1; from < ranks.size; from++) await ranks.receive(from);
  });
  for (let i = 0; i < LOOKS && sparse.missing(missing).length > 0; i++) {
    if (i > 0) await wait(SECONDS_BETWEEN * 1000);
    sparse.refreshCache();
  }
  if (sparse.missing(missing).length > 0)
    throw new CoppiceError(
      `the predictions that other processes computed are not in ${recipe.cacheDir ?? "the cache"}: all processes of the job must see the same cache (COPPICE_CACHE)`,
    );
}

/** A follower's part of {@link sharedLogits}. */
export async function joinLogits(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & LogitsTask;
  const { recipe, settings, sequences, numbers, device, memoryBytes, computeType } = task;
  const { length } = sequences;
  const ids = numbers.length === 0 ? new Int32Array() : ranks.receiveIds(numbers.length * length);
  const rowOf = new Map(numbers.map((number, row) => [number, row]));
  const tokensOf = (wanted: readonly number[]): Int32Array => {
    const tokens = new Int32Array(wanted.length * length);
    for (const [i, number] of wanted.entries()) {
      const row = required(rowOf.get(number), `sequence ${number} was not sent`);
      tokens.set(ids.subarray(row * length, (row + 1) * length), i * length);
    }
    return tokens;
  };
  await onDevice({ ...device, ranks }, async (backend) => {
    const checkpoint = openShared(task);
    const vocabSize = sharedVocabulary(recipe, checkpoint.model);
    const targets = required(targetsOf(recipe, settings, vocabSize), "whole distributions are not cached");
    const weights = streamedWeights(backend, checkpoint, {
      dtype: computeType,
      memoryBytes: memoryFor(backend, { memoryBytes, ranks }),
    });
    const sparse = await openSparseTeacher(recipe, targets, { backend, settings, sequences }, () => {
      throw new CoppiceError("a streamed teacher is not loaded as a whole");
    });
    try {
      await sparse.fillCache(weights, tokensOf, numbers);
    } finally {
      sparse.free();
    }
  });
  ranks.post({ kind: "logits" }, 0);
}
