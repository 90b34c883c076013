import type { Sequences } from "../data/index.js";
import type { ComputeType } from "../tensor/index.js";

/** How calibration data is gone through. */
export interface BatchOptions {
  /** Sequences looked at. */
  readonly samples: number;
  /** Sequences computed at once. */
  readonly batchSize: number;
  readonly computeType: ComputeType;
}

/** The same, told how far it is. */
export interface CalibrationOptions extends BatchOptions {
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Sequences spread evenly over a whole stream, so that no part of the corpus decides, in batches of equal size.
 * @param samples how many at most
 */
export function spreadBatches(sequences: Sequences, samples: number, batchSize: number): number[][] {
  const size = Math.min(batchSize, samples, sequences.count);
  const batches = Math.max(1, Math.floor(Math.min(samples, sequences.count) / size));
  const stride = sequences.count / (batches * size);
  return Array.from({ length: batches }, (_, batch) =>
    Array.from({ length: size }, (__, i) => Math.floor((batch * size + i) * stride)),
  );
}
