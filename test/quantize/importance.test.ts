import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Sequences, TokenStream } from "../../src/data/index.js";
import { DivergenceMeter } from "../../src/evaluate/divergence.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { loadImportance, measureImportance, measureSensitivity, saveImportance } from "../../src/quantize/index.js";
import { Random } from "../../src/system/random.js";
import { Graph, type Tensor } from "../../src/tensor/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const backend = Backend.open({ device: "cpu" });
const { config, source } = openCheckpoint(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"));
const model = modelFromConfig(config);
const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
afterAll(() => {
  weights.free();
  backend.free();
});

const random = new Random(3);
const ids = Int32Array.from({ length: 12 * 32 + 1 }, () => Math.floor(random.uniform() * model.vocabSize));
const sequences = new Sequences(TokenStream.of(ids, "random"), 32);
const options = { samples: 12, batchSize: 4, computeType: "f32" as const };

/** Activations and logits of a single pass over everything, read out whole: an independent way to the same numbers. */
async function readOut(names: readonly string[], of = weights) {
  const g = new Graph(backend);
  const tokens = g.input("tokens", "i32", [12, 32]);
  const taps = new Map<string, Tensor>();
  const { logits } = model.forward(g, of.get, tokens, {
    tap: ({ name, tensor }) => void (names.includes(name) && taps.set(name, g.output(tensor))),
  });
  const all = g.output(logits());
  g.write(tokens, ids.subarray(0, 12 * 32));
  await g.run();
  const values = new Map([...taps].map(([name, tensor]) => [name, g.read(tensor).slice()]));
  const result = { taps: values, logits: g.read(all).slice() };
  g.free();
  return result;
}

function logProbabilities(row: Float32Array): Float64Array {
  const values = Float64Array.from(row);
  const largest = values.reduce((a, b) => Math.max(a, b));
  const sum = values.reduce((total, value) => total + Math.exp(value - largest), 0);
  return values.map((value) => value - largest - Math.log(sum));
}

describe("importances", () => {
  it("are the mean squares of what each matrix multiplies", async () => {
    const importance = await measureImportance(backend, weights, sequences, options);
    const specs = model.parameters.filter((spec) => spec.input !== undefined);
    expect([...importance.keys()]).toEqual(specs.map(({ name }) => name));
    const { taps } = await readOut(specs.map((spec) => spec.input!));
    for (const spec of specs) {
      const activation = taps.get(spec.input!)!;
      const columns = activation.length / (12 * 32);
      const expected = Float64Array.from({ length: columns }, (_, column) => {
        let sum = 0;
        for (let row = 0; row < 12 * 32; row++) sum += activation[row * columns + column]! ** 2;
        return sum / (12 * 32);
      });
      const found = importance.get(spec.name)!;
      expect(found.length).toBe(columns);
      const scale = expected.reduce((a, b) => Math.max(a, b));
      for (const [i, value] of expected.entries())
        expect(Math.abs(value - found[i]!) / scale, spec.name).toBeLessThan(1e-4);
    }
  });

  it("come back from their file, and are refused for another model", async () => {
    const importance = await measureImportance(backend, weights, sequences, options);
    const file = path.join(root, "importance.safetensors");
    saveImportance(file, importance);
    expect(loadImportance(file, model)).toEqual(importance);
    const other = modelFromConfig({ ...config, intermediate_size: 100 });
    expect(() => loadImportance(file, other)).toThrow(/another model/);
  });
});

describe("divergence from a reference", () => {
  it("is none from itself, and else what the logits say", async () => {
    const meter = await DivergenceMeter.prepare(backend, weights, sequences, options);
    const other = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
    const same = meter.of(other);
    expect(await same.measure()).toBeLessThan(1e-6);
    const tensor = other.get("model.layers.1.mlp.down_proj.weight");
    other.store.write(
      tensor,
      other.store.read(tensor).map((value) => value * 1.5),
    );
    const found = await same.measure();
    const [p, q] = [(await readOut([])).logits, (await readOut([], other)).logits];
    let expected = 0;
    for (let row = 0; row < 12 * 32; row++) {
      const [a, b] = [p, q].map((logits) =>
        logProbabilities(logits.subarray(row * model.vocabSize, (row + 1) * model.vocabSize)),
      );
      for (const [i, value] of a!.entries()) expected += Math.exp(value) * (value - b![i]!);
    }
    expected /= 12 * 32;
    expect(expected).toBeGreaterThan(1e-3);
    expect(Math.abs(found - expected) / expected).toBeLessThan(1e-3);
    same.free();
    meter.free();
    other.free();
  });
});

describe("the cost of a type", () => {
  const few = { ...options, samples: 4, batchSize: 2 };

  it("falls with its bits, is kept in a file, and leaves the weights as they were", async () => {
    const importance = await measureImportance(backend, weights, sequences, options);
    const before = weights.trained.map((tensor) => weights.store.read(tensor).slice());
    const file = path.join(root, "costs.json");
    const types = ["q8_0", "q4_0"] as const;
    const sensitivity = await measureSensitivity(backend, weights, source, sequences, {
      ...few,
      importance,
      types,
      file,
    });
    for (const [i, tensor] of weights.trained.entries()) expect(weights.store.read(tensor)).toEqual(before[i]);
    const sums = types.map((dtype) =>
      [...sensitivity.values()].reduce((sum, costs) => sum + costs.find((cost) => cost.dtype === dtype)!.loss, 0),
    );
    expect(sums[0]!).toBeLessThan(sums[1]! / 10); // 16 times smaller steps: 256 times smaller squares
    let measured = 0;
    const again = await measureSensitivity(backend, weights, source, sequences, {
      ...few,
      importance,
      types,
      file,
      onProgress: () => measured++,
    });
    expect(again).toEqual(sensitivity);
    expect(measured).toBe(sensitivity.size);
  });

  it("estimated from one type is of the size of the measured one", async () => {
    const importance = await measureImportance(backend, weights, sequences, options);
    const types = ["q5_0", "q4_0", "iq4_nl"] as const;
    const [measured, probed] = [
      await measureSensitivity(backend, weights, source, sequences, { ...few, importance, types }),
      await measureSensitivity(backend, weights, source, sequences, { ...few, importance, types, probe: true }),
    ];
    const sum = (of: typeof measured, dtype: string) =>
      [...of.values()].reduce((total, costs) => total + costs.find((cost) => cost.dtype === dtype)!.loss, 0);
    for (const dtype of types) {
      const ratio = sum(probed, dtype) / sum(measured, dtype);
      expect(ratio, dtype).toBeGreaterThan(0.5);
      expect(ratio, dtype).toBeLessThan(2);
    }
  });
});
