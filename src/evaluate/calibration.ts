import { checkVocabulary, type Sequences } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { Graph, type Tensor } from "../tensor/index.js";
import { type CalibrationOptions, spreadBatches } from "./batches.js";
import { overflowError } from "./finite.js";

/** Statistics of activations that a graph accumulates on the device. */
export interface ActivationStatistics {
  /** Names of wanted activations that the forward pass did not have; empty when all is well. */
  readonly missing: Iterable<string>;
  /** The statistics, by name, after so many batches. */
  read(batches: number): Map<string, Float32Array>;
  free(): void;
}

export interface Calibration {
  readonly backend: Backend;
  readonly weights: ModelWeights;
  readonly sequences: Sequences;
  readonly options: CalibrationOptions;
  /** Writes the forward pass and its statistics to the graph. tokens: [batch, length], i32 */
  readonly build: (g: Graph, tokens: Tensor, batch: number) => ActivationStatistics;
  /** What the statistics of a name are called in messages, in the plural. */
  readonly describe: (name: string) => string;
}

/**
 * Computes statistics of activations over calibration data: one forward pass, nothing but the statistics leaves the device.
 * @throws CoppiceError when the data has tokens beyond the vocabulary, an activation is missing, or a statistic is not finite
 */
export async function calibrationStatistics(calibration: Calibration): Promise<Map<string, Float32Array>> {
  const { backend, weights, sequences, options } = calibration;
  const { computeType, onProgress } = options;
  checkVocabulary(sequences.stream, weights.model.vocabSize);
  const batches = spreadBatches(sequences, options.samples, options.batchSize);
  const [firstBatch = []] = batches;
  const batch = firstBatch.length;
  const g = new Graph(backend, { computeType });
  let statistics: ActivationStatistics | undefined;
  try {
    const tokens = g.input("tokens", "i32", [batch, sequences.length]);
    statistics = calibration.build(g, tokens, batch);
    for (const name of statistics.missing)
      throw new CoppiceError(`${weights.model.architecture} has no activation ${name}`);
    for (const [i, numbers] of batches.entries()) {
      g.write(tokens, sequences.batch(numbers).tokens);
      await g.run();
      onProgress?.((i + 1) * batch, batches.length * batch);
    }
    const values = statistics.read(batches.length);
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
    g.free();
    statistics?.free();
  }
}
