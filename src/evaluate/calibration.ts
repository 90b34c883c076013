import { checkVocabulary, type Sequences } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { PassWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import type { TensorStore } from "../tensor/index.js";
import { type CalibrationOptions, spreadBatches } from "./batches.js";
import { overflowError } from "./finite.js";
import { forwardPass, type Observer, type PassProgress } from "./forward-pass.js";
import { ResidualStream } from "./residual-stream.js";
import { restoreSums, type SavedStreams } from "./saved-streams.js";

/** Statistics of activations that graphs accumulate on the device. */
export interface ActivationStatistics extends Observer {
  /** Names of wanted activations that the forward pass did not have; empty when all is well. */
  readonly missing: Set<string>;
  /** What is added up, on the device. */
  readonly sums: TensorStore;
  /** The statistics, by name, after so many batches. */
  read(batches: number): Map<string, Float32Array>;
  free(): void;
}

export interface Calibration {
  readonly backend: Backend;
  readonly weights: PassWeights;
  readonly sequences: Sequences;
  readonly options: CalibrationOptions;
  /** Makes the statistics of batches of so many sequences. */
  readonly statisticsOf: (batch: number) => ActivationStatistics;
  /** What the statistics of a name are called in messages, in the plural. */
  readonly describe: (name: string) => string;
}

/**
 * Computes statistics of activations over calibration data: one forward pass, nothing but the statistics leaves the device.
 * @throws CoppiceError when the data has tokens beyond the vocabulary, an activation is missing, or a statistic is not finite
 */
export async function calibrationStatistics(calibration: Calibration): Promise<Map<string, Float32Array>> {
  const { backend, weights, sequences, options } = calibration;
  const { computeType, signal, savedStreams, onProgress } = options;
  checkVocabulary(sequences.stream, weights.model.vocabSize);
  const batches = spreadBatches(sequences, options.samples, options.batchSize);
  const [firstBatch = []] = batches;
  const batch = firstBatch.length;
  const statistics = calibration.statisticsOf(batch);
  const data = {
    layout: { batch, seq: sequences.length },
    batches: batches.length,
    tokensOf: (number: number) => sequences.batch(elementAt(batches, number)).tokens,
  };
  const total = batches.length * batch;
  try {
    await forwardPass(backend, weights, data, statistics, {
      computeType,
      signal,
      progress: savedStreams && progressOf(statistics, savedStreams),
      onProgress: (share) => onProgress?.(Math.floor(share * total), total),
    });
    for (const name of statistics.missing)
      throw new CoppiceError(`${weights.model.architecture} has no activation ${name}`);
    await options.shared?.add(statistics.sums);
    const values = statistics.read(options.shared?.batches ?? batches.length);
    const overflowing = [...values].find(([, vector]) => !vector.every(Number.isFinite));
    if (overflowing !== undefined)
      throw await overflowError(`${calibration.describe(overflowing[0])} are not finite: the model`, {
        backend,
        weights,
        tokens: sequences.batch(firstBatch).tokens,
        batch,
        computeType,
      });
    return values;
  } finally {
    statistics.free();
  }
}

/** Keeps statistics beside the stream that they are of. */
const progressOf = (statistics: ActivationStatistics, saved: SavedStreams): PassProgress => ({
  restore: (passage, { tensors, dtype }) => {
    const known = saved.resume((found) => {
      const stream = ResidualStream.restored(passage, tensors, { source: found.file, name: STREAM }, dtype);
      if (stream !== undefined && restoreSums(found, statistics.sums)) {
        const missing = found.file.metadata[MISSING]?.split("\n") ?? [];
        for (const name of [...statistics.missing]) if (!missing.includes(name)) statistics.missing.delete(name);
        return stream;
      }
      stream?.free();
      return undefined;
    });
    return known && { layers: known.steps, stream: known.restored };
  },
  save: (layers, stream) =>
    saved.save(
      layers,
      { [STREAM]: stream },
      { sums: statistics.sums, notes: { [MISSING]: [...statistics.missing].join("\n") } },
    ),
});

/** Names in the file. */
const [STREAM, MISSING] = ["stream", "missing"];
