import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { openSafetensors, readTensor } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { type Backend, toFloat32 } from "../../src/ggml/index.js";
import { ARCHITECTURES, loadWeights, type Model, type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { keptIndices, type PrunePlan, planFor, prune, type Scores } from "../../src/prune/index.js";
import { Random } from "../../src/system/random.js";
import { Graph } from "../../src/tensor/index.js";

export const fixtures = path.resolve(import.meta.dirname, "../fixtures/architectures");

/** Small random models made by transformers (bench/peers/make_architecture_fixtures.py), with their architectures. */
export const models = readdirSync(fixtures)
  .filter((name) => existsSync(path.join(fixtures, name, "config.json")))
  .map((name) => ({ name, directory: path.join(fixtures, name) }));

/** A message for each architecture that no fixture covers. */
export function withoutFixture(): string[] {
  const covered = new Set(models.map(({ directory }) => openCheckpoint(directory).model.architecture));
  return ARCHITECTURES.filter(({ name }) => !covered.has(name)).map(
    ({ name }) => `${name} has no fixture in test/fixtures/architectures: see docs/adding-a-model.md, step 2`,
  );
}

/** What transformers computed: token ids [sequences][places], and logits [sequences · places · vocabulary]. */
export function expected(backend: Backend, directory: string) {
  const { tokens } = readJsonObject(path.join(directory, "expected.json"));
  const bytes = readTensor(openSafetensors(path.join(directory, "expected.safetensors")), "logits");
  return { tokens: tokens as number[][], logits: toFloat32(backend.functions, bytes, "f32") };
}

/**
 * Logits of every place of every sequence, in f32.
 * @param later where what is to be freed goes; freed at once by default. Software drivers of Vulkan damage memory when a graph is
 * freed between others.
 */
export async function logitsOf(
  backend: Backend,
  { model, source }: ModelTensors,
  tokens: readonly number[][],
  later?: { free(): void }[],
) {
  const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
  const g = new Graph(backend, { computeType: "f32" });
  try {
    const input = g.input("tokens", "i32", [tokens.length, tokens[0]?.length ?? 0]);
    const logits = g.output(model.forward(g, weights.get, input).logits());
    g.write(input, Int32Array.from(tokens.flat()));
    await g.run();
    return g.read(logits).slice();
  } finally {
    if (later === undefined) for (const one of [g, weights]) one.free();
    else later.push(g, weights);
  }
}

/** Largest difference of two arrays, relative to the largest of the second. */
export function relativeDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < b.length; i++) {
    difference = Math.max(difference, Math.abs((a[i] ?? Number.NaN) - (b[i] ?? 0)));
    scale = Math.max(scale, Math.abs(b[i] ?? 0));
  }
  return difference / scale;
}

/** Of each size about so much stays in a cut. */
const KEPT = 0.75;

/** A cut of each of a model's axes, and one of all at once. */
export function cutsOf(model: Model): { readonly name: string; readonly plan: PrunePlan }[] {
  const layersToCut = [1, ...Array.from({ length: model.layerCount }, (_, i) => i)]; // from the middle: kinds of layers move
  const sizeFor = (name: string): number => {
    const axis = model.axes.find((one) => one.name === name);
    const size = model.sizes[axis?.dimensions[0] ?? ""] ?? 0;
    if (name === "layers") return size - 1;
    if (name === "heads" || name === "kvHeads") return size / 2;
    const multiple = axis?.multipleOf ?? 1;
    return multiple * Math.floor((KEPT * size) / multiple);
  };
  const sizes = Object.fromEntries(model.axes.map(({ name }) => [name, sizeFor(name)]));
  const alone = Object.entries(sizes).map(([name, size]) => [name, { [name]: size }] as const);
  const all = [...alone, ["all", "kvHeads" in sizes ? { ...sizes, heads: sizes.kvHeads ?? 0 } : sizes] as const];
  return all.map(([name, wanted]) => ({ name, plan: planFor(model, wanted, [...new Set(layersToCut)]) }));
}

/** Scores at random, the same for each model always. */
export function randomScores(model: Model): Scores {
  const random = new Random(5);
  const entries = Object.entries(model.sizes).sort(([a], [b]) => (a < b ? -1 : 1));
  return new Map(entries.map(([name, size]) => [name, Float32Array.from({ length: size }, () => random.uniform())]));
}

/** A model cut by a plan. */
export const cut = (checkpoint: ModelTensors, plan: PrunePlan): ModelTensors =>
  prune(checkpoint, plan, keptIndices(checkpoint.model, plan, randomScores(checkpoint.model)));

/** Of the logits of a cut model, those that its reference holds: of the first sequence, every fourth place. */
export const sampled = (logits: Float32Array, vocab: number, places: number): Float32Array =>
  Float32Array.from(
    { length: Math.ceil(places / 4) * vocab },
    (_, i) => logits[Math.floor(i / vocab) * 4 * vocab + (i % vocab)] ?? 0,
  );
