import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { openSafetensors, readTensor } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { type Backend, toFloat32 } from "../../src/ggml/index.js";
import { ARCHITECTURES, loadWeights, type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { Graph } from "../../src/tensor/index.js";

export const fixtures = path.resolve(import.meta.dirname, "../fixtures/architectures");

/** Small random models made by transformers (bench/peers/make_architecture_fixtures.py), with their architectures. */
export const models = readdirSync(fixtures)
  .filter((name) => existsSync(path.join(fixtures, name, "config.json")))
  .map((name) => ({ name, directory: path.join(fixtures, name) }));

/** The architectures that a fixture covers. */
export const covered = (): Map<string, string[]> => {
  const found = new Map(ARCHITECTURES.map(({ name }) => [name, [] as string[]]));
  for (const { name, directory } of models) found.get(openCheckpoint(directory).model.architecture)?.push(name);
  return found;
};

/** What transformers computed: token ids [sequences][places], and logits [sequences · places · vocabulary]. */
export function expected(backend: Backend, directory: string) {
  const { tokens } = readJsonObject(path.join(directory, "expected.json"));
  const bytes = readTensor(openSafetensors(path.join(directory, "expected.safetensors")), "logits");
  return { tokens: tokens as number[][], logits: toFloat32(backend.functions, bytes, "f32") };
}

/** Logits of every place of every sequence, in f32. */
export async function logitsOf(backend: Backend, { model, source }: ModelTensors, tokens: readonly number[][]) {
  const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
  const g = new Graph(backend, { computeType: "f32" });
  try {
    const input = g.input("tokens", "i32", [tokens.length, tokens[0]?.length ?? 0]);
    const logits = g.output(model.forward(g, weights.get, input).logits());
    g.write(input, Int32Array.from(tokens.flat()));
    await g.run();
    return g.read(logits).slice();
  } finally {
    g.free();
    weights.free();
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
