import path from "node:path";
import { openSafetensors, readTensor, writeSafetensors } from "../checkpoint/index.js";
import { checkVocabulary, type Sequences } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf, toFloat32 } from "../ggml/dtype.js";
import { type DimensionName, layerDimension, type Model, type ModelWeights } from "../models/index.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { type ComputeType, Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/**
 * How much each index of each dimension contributes: `hidden`, `layers.3.ffn`, `layers.3.heads`, `layers.3.kvHeads`, and
 * `layers` with the Block Influence of each layer.
 */
export type Scores = ReadonlyMap<DimensionName, Float32Array>;

export interface CalibrationOptions {
  /** Sequences scored. */
  readonly samples: number;
  /** Sequences computed at once. */
  readonly batchSize: number;
  readonly computeType: ComputeType;
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Scores every dimension in one pass over calibration data, forward only (arXiv 2407.14679, section 2.2): with a[b, s, c]
 * the activation of channel c, score[c] = sqrt(Σ_b (mean_s |a[b, s, c]|)²). A head's activation is the L2 norm over its
 * channels, a key-value head's score the sum of its group's. Layers get their Block Influence, 1 - mean cosine between
 * input and output (arXiv 2403.03853, eq. 1). Reduced on the device: only scores leave it.
 */
export async function calibrate(
  backend: Backend,
  weights: ModelWeights,
  sequences: Sequences,
  options: CalibrationOptions,
): Promise<Scores> {
  const { model } = weights;
  checkVocabulary(sequences.stream, model.vocabSize);
  const samples = Math.min(options.samples, sequences.count);
  const batchSize = Math.min(options.batchSize, samples);
  const batches = Math.floor(samples / batchSize);
  const g = new Graph(backend, { computeType: options.computeType });
  const tokens = g.input("tokens", "i32", [batchSize, sequences.length]);
  const taps = new Map<string, Tensor>();
  model.forward(g, weights.get, tokens, { tap: (name, activation) => void taps.set(name, activation) });
  const sums = new ScoreSums(g, model, taps, batchSize, sequences.length);
  // spread over the whole stream, so that one part of the corpus does not decide
  const stride = sequences.count / (batches * batchSize);
  try {
    for (let batch = 0; batch < batches; batch++) {
      const numbers = Array.from({ length: batchSize }, (_, i) => Math.floor((batch * batchSize + i) * stride));
      g.write(tokens, sequences.batch(numbers).tokens);
      await g.run();
      options.onProgress?.((batch + 1) * batchSize, batches * batchSize);
    }
    return sums.read(batches);
  } finally {
    g.free();
    sums.free();
  }
}

/** Running sums of scores on the device. */
class ScoreSums {
  private readonly store: TensorStore;

  constructor(
    g: Graph,
    private readonly model: Model,
    taps: ReadonlyMap<string, Tensor>,
    private readonly batchSize: number,
    private readonly sequenceLength: number,
  ) {
    this.store = new TensorStore(g.backend, model.scoredBy.length + model.layerCount);
    for (const { dimension, tap } of model.scoredBy) this.store.add(tap, [1, sizeOf(model, dimension)], "f32");
    for (let layer = 0; layer < model.layerCount; layer++) this.store.add(layerDimension(layer, "cosine"), [1], "f32");
    this.store.allocate();
    const accumulate = (name: string, value: Tensor): void => {
      const sum = this.store.get(name);
      g.effect(ops.assign(g, ops.add(g, value, sum), sum));
    };
    const activation = (name: string): Tensor => {
      const found = taps.get(name);
      if (found === undefined) throw new CoppiceError(`${model.architecture} has no activation ${name}`);
      return found;
    };
    for (const { dimension, tap } of model.scoredBy)
      accumulate(tap, this.batchScore(g, activation(tap), sizeOf(model, dimension)));
    for (let layer = 0; layer < model.layerCount; layer++) {
      const cosine = meanCosine(
        g,
        activation(layerDimension(layer, "input")),
        activation(layerDimension(layer, "output")),
      );
      accumulate(layerDimension(layer, "cosine"), cosine);
    }
  }

  /** Σ_b (mean_s |a|)² of one batch: [batch · seq, channels] -> [1, size]. */
  private batchScore(g: Graph, x: Tensor, size: number): Tensor {
    const channels = (x.shape[1] ?? 0) / size;
    const magnitudes =
      channels === 1
        ? ops.abs(g, x)
        : ops.sqrt(g, ops.sumLast(g, ops.square(g, ops.reshape(g, x, { to: [x.shape[0] ?? 0, size, channels] }))));
    const perSample = ops.reshape(g, magnitudes, { to: [this.batchSize, this.sequenceLength, size] });
    const means = ops.scale(g, ops.sumRows(g, perSample), { factor: 1 / this.sequenceLength }); // [batch, 1, size]
    return ops.sumRows(g, ops.square(g, ops.reshape(g, means, { to: [this.batchSize, size] })));
  }

  read(batches: number): Scores {
    const scores = new Map<DimensionName, Float32Array>();
    for (const { dimension, tap } of this.model.scoredBy) {
      const score = this.store.read(this.store.get(tap)).map(Math.sqrt);
      const before = scores.get(dimension);
      scores.set(dimension, before === undefined ? score : before.map((value, i) => value + (score[i] ?? 0)));
    }
    for (const { heads, kvHeads } of this.model.headGroups) {
      const groups = sizeOf(this.model, kvHeads);
      const headScores = scores.get(heads) ?? new Float32Array();
      const perGroup = headScores.length / groups;
      scores.set(
        kvHeads,
        Float32Array.from({ length: groups }, (_, i) =>
          headScores.subarray(i * perGroup, (i + 1) * perGroup).reduce((a, b) => a + b, 0),
        ),
      );
    }
    const influence = (layer: number) =>
      1 - (this.store.read(this.store.get(layerDimension(layer, "cosine")))[0] ?? 0) / batches;
    scores.set(
      "layers",
      Float32Array.from({ length: this.model.layerCount }, (_, layer) => influence(layer)),
    );
    return scores;
  }

  free(): void {
    this.store.free();
  }
}

const sizeOf = (model: Model, dimension: DimensionName): number => model.sizes[dimension] ?? 1;

/** Mean over rows of the cosine between two [rows, width] tensors -> [1]. */
function meanCosine(g: Graph, x: Tensor, y: Tensor): Tensor {
  const dot = ops.sumLast(g, ops.mul(g, x, y));
  const norms = ops.mul(
    g,
    ops.sqrt(g, ops.sumLast(g, ops.square(g, x))),
    ops.sqrt(g, ops.sumLast(g, ops.square(g, y))),
  );
  return ops.mean(g, ops.div(g, dot, norms));
}

/** Keeps scores in a safetensors file, one tensor per dimension. */
export function saveScores(file: string, scores: Scores): void {
  const tensors = [...scores].map(([name, values]) => ({
    name,
    dtype: "f32" as const,
    shape: [values.length],
    chunks: () => [bytesOf(values)],
  }));
  writeSafetensors(path.resolve(file), tensors, { kind: "coppice importance scores" });
}

/**
 * Reads saved scores for a model.
 * @throws FormatError when they are not this model's
 */
export function loadScores(backend: Backend, file: string, model: Model): Scores {
  const source = openSafetensors(file);
  const scores = new Map<DimensionName, Float32Array>();
  const dimensions = new Set([
    ...model.scoredBy.map(({ dimension }) => dimension),
    ...model.headGroups.map((group) => group.kvHeads),
  ]);
  for (const dimension of [...dimensions, "layers"]) {
    const info = source.tensors.get(dimension);
    if (info?.shape.join() !== String(sizeOf(model, dimension)))
      throw new FormatError(
        `${file} has no ${sizeOf(model, dimension)} scores for ${dimension}: it was made for another model`,
      );
    scores.set(dimension, toFloat32(backend.functions, readTensor(source, dimension), info.dtype).slice());
  }
  return scores;
}
