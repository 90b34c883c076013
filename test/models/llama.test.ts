import { readdirSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openSafetensors, readTensor } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { Backend, toFloat32 } from "../../src/ggml/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { Graph } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { hasSharedData, stories260K } from "../shared-data.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");

/** Largest difference of two arrays, relative to the largest of the second. */
function relativeDifference(a: Float32Array, b: Float32Array): number {
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < b.length; i++) {
    difference = Math.max(difference, Math.abs(a[i]! - b[i]!));
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return difference / scale;
}

async function logitsOf(backend: Backend, directory: string, tokens: number[][], computeType: "f32" | "bf16") {
  const { config, source } = openCheckpoint(directory);
  const model = modelFromConfig(config);
  const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
  const g = new Graph(backend, { computeType });
  const input = g.input("tokens", "i32", [tokens.length, tokens[0]!.length]);
  const logits = g.output(model.forward(g, weights.get, input).logits());
  g.write(input, Int32Array.from(tokens.flat()));
  await g.run();
  const free = () => {
    g.free();
    weights.free();
  };
  return { values: g.read(logits), free };
}

function expected(name: string) {
  const directory = path.join(fixtures, name);
  const file = openSafetensors(path.join(directory, "expected-logits.safetensors"));
  const bytes = readTensor(file, "logits");
  const { tokens } = readJsonObject(path.join(directory, "expected.json"));
  return { tokens: tokens as number[][], logits: toFloat32(Backend.open().functions, bytes, "f32") };
}

describe.each(testBackends)("logits on %s equal those of transformers", (_, options) => {
  const backend = Backend.open(options);
  const finished: { free(): void }[] = [];
  afterAll(() => finished.forEach((item) => void item.free()));

  it.each(readdirSync(fixtures).filter((name) => name !== "stories260K"))("for %s", async (name) => {
    const { tokens, logits } = expected(name);
    const result = await logitsOf(backend, path.join(fixtures, name), tokens, "f32");
    finished.push(result);
    expect(result.values.length).toBe(logits.length);
    expect(relativeDifference(result.values, logits)).toBeLessThan(1e-4);
  });

  it.skipIf(!hasSharedData)("for stories260K, and in bf16 within its precision", async () => {
    const { tokens, logits } = expected("stories260K");
    const every8th = (values: Float32Array, vocab: number) =>
      Float32Array.from({ length: logits.length }, (_, i) => values[Math.floor(i / vocab) * 8 * vocab + (i % vocab)]!);
    const exact = await logitsOf(backend, stories260K, tokens, "f32");
    const rounded = await logitsOf(backend, stories260K, tokens, "bf16");
    finished.push(exact, rounded);
    expect(relativeDifference(every8th(exact.values, 512), logits)).toBeLessThan(1e-4);
    expect(relativeDifference(every8th(rounded.values, 512), logits)).toBeLessThan(3e-2);
  });
});

describe("configurations that cannot be run", () => {
  const valid = {
    model_type: "llama",
    vocab_size: 96,
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
  };
  it.each([
    [
      "an unknown architecture",
      { model_type: "mamba" },
      /model_type "mamba" is not supported; supported are llama, mistral/,
    ],
    ["a missing field", { hidden_size: undefined }, /hidden_size/],
    ["a size that is no size", { hidden_size: -1 }, /hidden_size/],
    ["an absurd size", { vocab_size: 1e12 }, /vocab_size/],
    ["heads that do not divide", { num_key_value_heads: 3 }, /4 attention heads cannot be divided among 3/],
    ["an unknown activation", { hidden_act: "relu" }, /hidden_act is "relu"/],
    ["an unknown rotary scaling", { rope_scaling: { type: "magic", factor: 2 } }, /"magic" is not supported/],
    ["a scaling without its factor", { rope_scaling: { type: "linear" } }, /needs a "factor"/],
    ["a list of sizes of the wrong length", { intermediate_size: [48] }, /lists 1 sizes for 2 layers/],
  ])("%s is refused by name", (_, change, message) => {
    expect(() => modelFromConfig({ ...valid, ...change })).toThrow(message);
  });
});
