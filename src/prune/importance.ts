import path from "node:path";
import { checkOwner, openSafetensors, readTensor, writeSafetensors } from "../checkpoint/index.js";
import { checkVocabulary, type Sequences } from "../data/index.js";
import { type CalibrationOptions, spreadBatches } from "../evaluate/batches.js";
import { overflowError } from "../evaluate/finite.js";
import { toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf } from "../ggml/dtype.js";
import {
  type DimensionName,
  layerDimension,
  type Model,
  type ModelWeights,
  sizeOf,
  splitLayer,
  type Tap,
} from "../models/index.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/**
 * How much each index of each dimension contributes: `hidden`, `layers.3.ffn`, `layers.3.heads`, `layers.3.kvHeads`, and
 * `layers` with the Block Influence of each layer.
 */
export type Scores = ReadonlyMap<DimensionName, Float32Array>;

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
  const batches = spreadBatches(sequences, options.samples, options.batchSize);
  const batchSize = batches[0]?.length ?? 1;
  const g = new Graph(backend, { computeType: options.computeType });
  const tokens = g.input("tokens", "i32", [batchSize, sequences.length]);
  const sums = new ScoreSums(g, model, batchSize);
  model.forward(g, weights.get, tokens, { tap: sums.tap });
  sums.checkComplete();
  try {
    for (const [i, numbers] of batches.entries()) {
      g.write(tokens, sequences.batch(numbers).tokens);
      await g.run();
      options.onProgress?.((i + 1) * batchSize, batches.length * batchSize);
    }
    const scores = sums.read(batches.length);
    for (const [dimension, values] of scores)
      if (!values.every(Number.isFinite))
        throw await overflowError(`the scores of ${dimension} are not finite: the model`, {
          backend,
          weights,
          tokens: sequences.batch(batches[0] ?? []).tokens,
          batch: batchSize,
          computeType: options.computeType,
        });
    return scores;
  } finally {
    g.free();
    sums.free();
  }
}

/** Running sums of scores on the device. */
class ScoreSums {
  private readonly store: TensorStore;

  /** Where a layer's input is until its output is there. */
  private input: Tensor | undefined;
  private readonly missing: Set<string>;

  constructor(
    private readonly g: Graph,
    private readonly model: Model,
    private readonly batchSize: number,
  ) {
    this.store = new TensorStore(g.backend, model.scoredBy.length + model.layerCount);
    for (const { dimension, tap } of model.scoredBy) this.store.add(tap, [1, sizeOf(dimension, model.sizes)], "f32");
    for (let layer = 0; layer < model.layerCount; layer++) this.store.add(layerDimension(layer, "cosine"), [1], "f32");
    this.store.allocate();
    this.missing = new Set(model.scoredBy.map(({ tap }) => tap));
  }

  /** Adds an activation to its sums at once, so that it need not be kept. */
  readonly tap: Tap = (name, activation) => {
    const { g } = this;
    if (this.missing.delete(name))
      g.effect(ops.addMagnitudes(g, this.store.get(name), activation, { batch: this.batchSize }));
    const at = splitLayer(name);
    if (at?.name === "input") this.input = activation;
    if (at?.name === "output" && this.input !== undefined) {
      const sum = this.store.get(layerDimension(at.layer, "cosine"));
      g.effect(ops.assign(g, ops.add(g, ops.meanCosine(g, this.input, activation), sum), sum));
    }
  };

  /** @throws CoppiceError when the forward pass has not named every activation that scores need */
  checkComplete(): void {
    const [name] = this.missing;
    if (name !== undefined) throw new CoppiceError(`${this.model.architecture} has no activation ${name}`);
  }

  read(batches: number): Scores {
    const scores = new Map<DimensionName, Float32Array>();
    for (const { dimension, tap } of this.model.scoredBy) {
      const score = this.store.read(this.store.get(tap)).map(Math.sqrt);
      const before = scores.get(dimension);
      scores.set(dimension, before === undefined ? score : before.map((value, i) => value + (score[i] ?? 0)));
    }
    for (const { dimension, groupedBy } of this.model.groups) {
      const groups = sizeOf(groupedBy, this.model.sizes);
      const headScores = scores.get(dimension) ?? new Float32Array();
      const perGroup = headScores.length / groups;
      scores.set(
        groupedBy,
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

/**
 * Keeps scores in a safetensors file, one tensor per dimension.
 * @param identity what the model contains that they are of
 */
export function saveScores(file: string, scores: Scores, identity?: string): void {
  const tensors = [...scores].map(([name, values]) => ({
    name,
    dtype: "f32" as const,
    shape: [values.length],
    chunks: () => [bytesOf(values)],
  }));
  writeSafetensors(path.resolve(file), tensors, {
    kind: "coppice importance scores",
    ...(identity !== undefined && { model: identity }),
  });
}

/**
 * Reads saved scores for a model.
 * @param identity what the model contains; models of the same sizes are told apart by it
 * @throws FormatError when they are not this model's
 */
export function loadScores(backend: Backend, file: string, model: Model, identity?: string): Scores {
  const source = openSafetensors(file);
  checkOwner(source, identity, "scores");
  const scores = new Map<DimensionName, Float32Array>();
  const dimensions = new Set([
    ...model.scoredBy.map(({ dimension }) => dimension),
    ...model.groups.map(({ groupedBy }) => groupedBy),
  ]);
  for (const dimension of [...dimensions, "layers"]) {
    const info = source.tensors.get(dimension);
    if (info?.shape.join() !== String(sizeOf(dimension, model.sizes)))
      throw new FormatError(
        `${file} has no ${sizeOf(dimension, model.sizes)} scores for ${dimension}: it was made for another model`,
      );
    scores.set(dimension, toFloat32(backend.functions, readTensor(source, dimension), info.dtype).slice());
  }
  return scores;
}
