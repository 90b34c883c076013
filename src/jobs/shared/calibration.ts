import { Sequences, TokenStream } from "../../data/index.js";
import { type SharedSums, spreadBatches } from "../../evaluate/index.js";
import { calibrate, type Scores } from "../../prune/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import type { TensorStore } from "../../tensor/index.js";
import { type MeasuredModel, type SharedModel, sharedModel, withModel } from "./model.js";

interface CalibrationTask extends SharedModel {
  readonly sequenceLength: number;
  readonly batchSize: number;
  /** Batches of this rank, and of all. */
  readonly batches: number;
  readonly allBatches: number;
}

/** Sequences as given, one after the other. */
function sequencesOf(ids: Int32Array, length: number): Sequences {
  const withNext = new Int32Array(ids.length + 1); // what follows the last one is not read
  withNext.set(ids);
  return new Sequences(TokenStream.of(withNext, "a part"), length);
}

/** Adds up the sums of all ranks at the leader. */
const sumsOver = (ranks: Ranks, batches: number): SharedSums => ({
  batches,
  add: async (sums: TensorStore) => {
    for (const tensor of sums) {
      const own = sums.read(tensor);
      const all = new Float32Array(own.length);
      await ranks.reduce(own, 0, ranks.isLeader ? all : undefined);
      if (ranks.isLeader) sums.write(tensor, all);
    }
  },
});

/** Scores of a model's dimensions from calibration data, of which each rank sees a part. */
export async function sharedCalibration(
  ranks: Ranks,
  { backend, weights, path, computeType, options }: MeasuredModel,
  sequences: Sequences,
  { samples, batchSize }: { readonly samples: number; readonly batchSize: number },
  onProgress: (done: number, total: number) => void,
): Promise<Scores> {
  const { signal } = options;
  const all = spreadBatches(sequences, samples, batchSize);
  if (all.length < ranks.size)
    return calibrate(backend, weights, sequences, { samples, batchSize, computeType, signal, onProgress });
  const { length } = sequences;
  const size = all[0]?.length ?? 0;
  const idsFor = (rank: number) => sequences.batch(all.slice(...ranks.share(all.length, rank)).flat()).tokens;
  return ranks.together(() => {
    for (let to = 1; to < ranks.size; to++) {
      const [from, end] = ranks.share(all.length, to);
      const task: CalibrationTask = {
        ...sharedModel(path, computeType, options),
        sequenceLength: length,
        batchSize: size,
        batches: end - from,
        allBatches: all.length,
      };
      ranks.post({ kind: "calibrate", ...task }, to);
      ranks.sendData(idsFor(to), to);
    }
    const own = sequencesOf(idsFor(0), length);
    return calibrate(backend, weights, own, {
      samples: own.count,
      batchSize: size,
      computeType,
      signal,
      shared: sumsOver(ranks, all.length),
      onProgress: (done) => onProgress(Math.min(samples, done * ranks.size), samples),
    });
  });
}

/** A follower's part of {@link sharedCalibration}. */
export async function joinCalibration(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & CalibrationTask;
  const { sequenceLength, batchSize, batches, allBatches, computeType } = task;
  const samples = batches * batchSize;
  const own = sequencesOf(ranks.receiveIds(samples * sequenceLength), sequenceLength);
  const shared = sumsOver(ranks, allBatches);
  await withModel(ranks, task, (backend, weights) =>
    calibrate(backend, weights, own, { samples, batchSize, computeType, shared }),
  );
}
