import path from "node:path";
import { openSafetensors } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import type { Passage } from "../../src/evaluate/residual-stream.js";
import type { Backend } from "../../src/ggml/index.js";
import { type Model, type ModelTensors, shapeOf, sizeOf } from "../../src/models/index.js";
import { memorySource } from "../../src/models/sources.js";
import { type AxisSizes, keptIndices, type PrunedModel, planFor } from "../../src/prune/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { type SurgeonScores, surgeonScores } from "../../src/prune/surgeon-scores.js";
import { cutAndRefit } from "../../src/refit/index.js";
import { Random } from "../../src/system/random.js";

/** Small random models, and what bench/peers/refit.py makes of them. */
export const fixtures = path.resolve(import.meta.dirname, "../fixtures/refit");

export type TokenRows = readonly number[][];

export const fixtureTokens = readJsonObject(path.join(fixtures, "tokens.json")) as {
  readonly calibration: TokenRows;
  readonly evaluation: TokenRows;
};

/** What the independent implementation computed for a fixture, by name. */
export function expectedOf(name: string): (tensor: string) => Float32Array {
  const source = openSafetensors(path.join(fixtures, name, "expected.safetensors"));
  return (tensor) => readMatrix(source, tensor).data;
}

/** Token ids at random. */
export function randomTokens(model: Model, sequences: number, length: number, seed = 3): number[][] {
  const random = new Random(seed);
  return Array.from({ length: sequences }, () =>
    Array.from({ length }, () => Math.floor(random.uniform() * model.vocabSize)),
  );
}

export interface PassageChanges {
  readonly batch?: number;
  readonly memoryBytes?: number;
}

/** All sequences in f32, in batches of four unless told otherwise. */
export function passageOver(
  backend: Backend,
  tokens: TokenRows,
  { batch = 4, memoryBytes = 2 ** 30 }: PassageChanges = {},
): Passage {
  const batches = Array.from({ length: tokens.length / batch }, (_, i) =>
    Int32Array.from(tokens.slice(i * batch, (i + 1) * batch).flat()),
  );
  return { backend, computeType: "f32", layout: { batch, seq: tokens[0]?.length ?? 0 }, batches, memoryBytes };
}

export interface Cut {
  readonly passage: Passage;
  readonly original: ModelTensors;
  readonly wanted: AxisSizes;
  /** A directory for finished parts. */
  readonly directory: string;
  readonly statistics?: SurgeonScores;
  /** Whether the stream is rotated where that can be: yes by default. */
  readonly rotate?: boolean;
  /** Layers in the order in which they are cut. */
  readonly layerOrder?: readonly number[];
  readonly saveEverySeconds?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

/** What a cut takes out; channels of the stream are scored by their numbers, the last ones highest. */
export async function planOf({ passage, original, wanted, layerOrder = [], statistics }: Cut) {
  const { model } = original;
  const { scores, streamMoments } = statistics ?? (await surgeonScores(passage, original));
  const hidden = Float32Array.from({ length: sizeOf("hidden", model.sizes) }, (_, i) => i + 1);
  const plan = planFor(model, wanted, layerOrder);
  return { plan, streamMoments, kept: keptIndices(model, plan, new Map([...scores, ["hidden", hidden]])) };
}

/** Cuts a model by optimal brain surgeon, and refits it. */
export async function cutBySurgeon(cut: Cut): Promise<PrunedModel> {
  const { passage, original, directory, rotate = true, saveEverySeconds, onProgress } = cut;
  const { plan, kept, streamMoments } = await planOf(cut);
  return cutAndRefit({
    passage,
    original,
    plan,
    kept,
    streamMoments: rotate ? streamMoments : undefined,
    place: (name) => path.join(directory, name),
    saveEverySeconds,
    onProgress,
  });
}

/** A model that notes which parameters are read. */
export function observed({ model, source }: ModelTensors): {
  readonly tensors: ModelTensors;
  readonly read: Set<string>;
} {
  const read = new Set<string>();
  const readRows: typeof source.readRows = (name, from, to) => {
    read.add(name);
    return source.readRows(name, from, to);
  };
  return { tensors: { model, source: { ...source, tensors: source.tensors, readRows } }, read };
}

/** Mean KL divergence of rows of logits from a reference's. */
export function divergence(reference: Float32Array, logits: Float32Array, vocab: number): number {
  const logShares = (row: Float32Array): Float64Array => {
    const largest = row.reduce((a, b) => Math.max(a, b));
    const total = Math.log(row.reduce((sum, value) => sum + Math.exp(value - largest), 0));
    return Float64Array.from(row, (value) => value - largest - total);
  };
  let sum = 0;
  for (let from = 0; from < logits.length; from += vocab) {
    const [p, q] = [reference, logits].map((all) => logShares(all.subarray(from, from + vocab)));
    sum += p!.reduce((a, value, i) => a + Math.exp(value) * (value - q![i]!), 0);
  }
  return (sum * vocab) / logits.length;
}

/** A model with values changed. @param change is given each parameter's values, to be changed in place, and its row length */
export function changed(
  { model, source }: ModelTensors,
  change: (name: string, data: Float32Array, columns: number) => void,
): ModelTensors {
  const values = new Map(
    model.parameters.map((spec) => {
      const { data, columns } = readMatrix(source, spec.name);
      change(spec.name, data, columns);
      return [spec.name, { shape: shapeOf(spec, model.sizes), values: data }];
    }),
  );
  return { model, source: memorySource(values) };
}
