import type { Sequences } from "../data/index.js";
import type { ComputeType, TensorStore } from "../tensor/index.js";
import type { SavedStreams } from "./saved-streams.js";

/** How calibration data is batched. */
export interface BatchOptions {
  /** How many sequences are used. */
  readonly samples: number;
  /** Sequences in a batch. */
  readonly batchSize: number;
  readonly computeType: ComputeType;
}

/** How sums over a part of the data become sums over all of it, where several processes share it. */
export interface SharedSums {
  /** Batches of all processes. */
  readonly batches: number;
  /** Adds the other processes' sums to these. */
  readonly add: (sums: TensorStore) => Promise<void>;
}

/** Batch options with a progress callback. */
export interface CalibrationOptions extends BatchOptions {
  /** Set where the sequences are a part of the data. */
  readonly shared?: SharedSums | undefined;
  /** Where weights are streamed: a calibration that was killed goes on from the last layer that is saved here. */
  readonly savedStreams?: SavedStreams | undefined;
  /** When aborted, the calibration ends with an error before its next batch. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Numbers of sequences spread evenly over a whole stream, so that no part of the corpus dominates, in batches of equal size.
 * @param samples how many sequences at most; of a number that is no multiple of the batches, a few less
 */
export function spreadBatches(sequences: Sequences, samples: number, batchSize: number): number[][] {
  const wanted = Math.min(samples, sequences.count);
  const batches = Math.max(1, Math.ceil(wanted / batchSize));
  const size = Math.floor(wanted / batches);
  const stride = sequences.count / (batches * size);
  return Array.from({ length: batches }, (_, batch) =>
    Array.from({ length: size }, (__, i) => Math.floor((batch * size + i) * stride)),
  );
}
