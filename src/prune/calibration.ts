import type { Sequences } from "../data/index.js";
import type { CalibrationOptions } from "../evaluate/batches.js";
import { type ActivationStatistics, calibrationStatistics } from "../evaluate/calibration.js";
import type { Backend } from "../ggml/device.js";
import {
  type Activation,
  type DimensionName,
  layerDimension,
  type Model,
  type PassWeights,
  sizeOf,
} from "../models/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import type { Scores } from "./scores.js";

/**
 * Scores every dimension in one pass over calibration data, forward only (arXiv 2407.14679, section 2.2): with a[b, s, c]
 * the activation of channel c, score[c] = sqrt(Σ_b (mean_s |a[b, s, c]|)²). A head's activation is the L2 norm over its
 * channels, a key-value head's score the sum of its group's. Layers get their Block Influence, 1 - mean cosine between
 * input and output (arXiv 2403.03853, eq. 1). Reduced on the device: only scores leave it.
 * @throws CoppiceError when the data is of another tokenizer, or a score is not finite
 */
export const calibrate = (
  backend: Backend,
  weights: PassWeights,
  sequences: Sequences,
  options: CalibrationOptions,
): Promise<Scores> =>
  calibrationStatistics({
    backend,
    weights,
    sequences,
    options,
    statisticsOf: (batch) => new ScoreSums(backend, weights.model, batch),
    describe: (dimension) => `the scores of ${dimension}`,
  });

/** Running sums of scores on the device. */
class ScoreSums implements ActivationStatistics {
  readonly missing: Set<string>;
  readonly sums: TensorStore;
  /** The current layer's input, until its output is there. */
  private layerInput: Tensor | undefined;

  constructor(
    backend: Backend,
    private readonly model: Model,
    private readonly batch: number,
  ) {
    this.sums = new TensorStore(backend, model.scoredBy.length + model.layerCount);
    for (const { dimension, tap } of model.scoredBy) this.sums.add(tap, [1, sizeOf(dimension, model.sizes)], "f32");
    for (let layer = 0; layer < model.layerCount; layer++) this.sums.add(layerDimension(layer, "cosine"), [1], "f32");
    this.sums.allocate();
    this.missing = new Set(model.scoredBy.map(({ tap }) => tap));
  }

  /** Adds an activation to its sums at once, so that it need not be kept. */
  readonly tap = (g: Graph, { name, layer, local, tensor }: Activation): void => {
    const { batch } = this;
    if (this.missing.delete(name)) g.effect(ops.addMagnitudes(g, this.sums.get(name), tensor, { batch }));
    if (layer === undefined) return;
    if (local === "input") this.layerInput = tensor;
    if (local === "output" && this.layerInput !== undefined) {
      const sum = this.sums.get(layerDimension(layer, "cosine"));
      g.effect(ops.assign(g, ops.add(g, ops.meanCosine(g, this.layerInput, tensor), sum), sum));
    }
  };

  read(batches: number): Map<DimensionName, Float32Array> {
    const { model } = this;
    const scores = new Map<DimensionName, Float32Array>();
    for (const { dimension, tap } of model.scoredBy) {
      const score = this.sum(tap).map(Math.sqrt);
      scores.set(dimension, addVectors(scores.get(dimension), score));
    }
    for (const { dimension, groupedBy } of model.groups)
      scores.set(groupedBy, groupSums(scores.get(dimension) ?? new Float32Array(), sizeOf(groupedBy, model.sizes)));
    const influence = (layer: number) => 1 - total(this.sum(layerDimension(layer, "cosine"))) / batches;
    scores.set(
      "layers",
      Float32Array.from({ length: model.layerCount }, (_, layer) => influence(layer)),
    );
    return scores;
  }

  private sum(name: string): Float32Array {
    return this.sums.read(this.sums.get(name));
  }

  free(): void {
    this.sums.free();
  }
}

const total = (values: Float32Array): number => values.reduce((a, b) => a + b, 0);

const addVectors = (a: Float32Array | undefined, b: Float32Array): Float32Array =>
  a === undefined ? b : a.map((value, i) => value + (b[i] as number));

/** The sums of equal runs of scores, one for each group. */
export function groupSums(scores: Float32Array, groups: number): Float32Array {
  const perGroup = scores.length / groups;
  return Float32Array.from({ length: groups }, (_, i) => total(scores.subarray(i * perGroup, (i + 1) * perGroup)));
}
