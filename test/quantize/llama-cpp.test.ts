import { cpSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { writeCheckpoint } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { Backend } from "../../src/ggml/index.js";
import { pruneModel } from "../../src/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { Graph } from "../../src/tensor/index.js";
import { greedyTokens, loadInLlamaCpp, logProbabilities, writeTokenizer } from "../llama-cpp.js";
import { randomModel } from "../random-model.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");
const demoTeacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");

/** Changes to the fixtures' configurations that leave what llama.cpp does not support out of the comparison. */
const CHANGES: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  // llama.cpp has no dynamic scaling beyond the trained length, and no window in this architecture
  "llama-rope-dynamic": { max_position_embeddings: 1024 },
  "mistral-window": { sliding_window: 1024 },
  // llama.cpp chooses factors by the size of its context, which is at least 256
  "llama-rope-longrope-short": { max_position_embeddings: 1024 },
};

function prepared(name: string, root: string): string {
  const directory = path.join(root, name);
  cpSync(path.join(fixtures, name), directory, { recursive: true });
  const config = { ...readJsonObject(path.join(directory, "config.json")), ...CHANGES[name] };
  if (name.endsWith("longrope-short")) {
    const scaling = (config.rope_parameters ?? config.rope_scaling) as Record<string, unknown>;
    scaling.original_max_position_embeddings = 512;
  }
  writeFileSync(path.join(directory, "config.json"), JSON.stringify(config));
  writeTokenizer(directory, Number(config.vocab_size));
  return directory;
}

/** A model with its own numbers of neurons and of heads in each layer, as pruning layer by layer makes them. */
function layersThatDiffer(
  root: string,
  name: string,
  ffn: readonly number[],
  kvHeads: readonly number[],
  more: Readonly<Record<string, unknown>> = {},
): string {
  const directory = path.join(root, name);
  const sizes = {
    hidden_size: 64,
    head_dim: 16,
    num_hidden_layers: ffn.length,
    intermediate_size: ffn,
    num_attention_heads: kvHeads.map((count) => 2 * count),
    num_key_value_heads: kvHeads,
    max_position_embeddings: 512,
    ...more,
  };
  const { checkpoint } = randomModel(root, name, sizes, 0.3);
  writeCheckpoint(directory, checkpoint.config, checkpoint.source, { place: (name) => path.join(directory, name) }); // again for each use
  return directory;
}

/** Our engine on one sequence: the token ids' logits, [positions][vocabulary]. */
async function ourLogits(backend: Backend, model: string, tokens: readonly number[]): Promise<Float32Array[]> {
  const { config, source } = openCheckpoint(model);
  const description = modelFromConfig(config);
  const weights = loadWeights(backend, description, source, { dtype: "f32", trainable: false });
  const g = new Graph(backend);
  try {
    const input = g.input("tokens", "i32", [1, tokens.length]);
    const logits = g.output(description.forward(g, weights.get, input).logits());
    g.write(input, Int32Array.from(tokens));
    await g.run();
    const values = g.read(logits);
    const { vocabSize } = description;
    return tokens.map((_, i) => values.slice(i * vocabSize, (i + 1) * vocabSize));
  } finally {
    g.free();
    weights.free();
  }
}

/** Logits without their mean, which does not affect probabilities. */
const centered = (row: ArrayLike<number>): number[] => {
  const values = Array.from(row);
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return values.map((value) => value - mean);
};

describe("a model exported to f32 computes in llama.cpp what it computes here", () => {
  const root = temporaryDirectory();
  const backend = Backend.open({ device: "cpu" });
  afterAll(() => backend.free());
  beforeAll(async () => {
    const data = path.join(root, "stories.txt");
    writeFileSync(data, corpus(5, 300));
    const target = {
      target: "hidden=96,ffn=320",
      data: [data],
      calibrationSamples: 16,
      cacheDir: path.join(root, "cache"),
    };
    await pruneModel({ ...target, model: demoTeacher, out: path.join(root, "cut"), device: "cpu" });
  });
  const variants = readdirSync(fixtures).filter((name) => name !== "stories260K");

  const cases: (readonly [string, () => string])[] = [
    ...variants.map((name) => [name, () => prepared(name, root)] as const),
    ["the demo's teacher", () => demoTeacher],
    ["layers that differ in size", () => layersThatDiffer(root, "differing", [96, 64, 128], [2, 1, 3])],
    ["layers without attention", () => layersThatDiffer(root, "no-attention", [96, 64, 96, 64], [2, 0, 2, 0])],
    ["layers without a network", () => layersThatDiffer(root, "no-network", [96, 0, 96, 0], [2, 2, 2, 2])],
    [
      "layers without a network, with biases",
      () => layersThatDiffer(root, "biased", [0, 96, 96], [2, 0, 2], { attention_bias: true, mlp_bias: true }),
    ],
    ["layers without either", () => layersThatDiffer(root, "neither", [0, 64, 0, 96], [2, 0, 0, 2])],
    ["a model cut as the demo cuts", () => path.join(root, "cut")],
    ...(hasSharedData ? [["stories260K", () => stories260K] as const] : []),
  ];

  it.each(cases)("%s", async (name, make) => {
    const directory = make();
    const file = path.join(root, `${name}.gguf`);
    await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
    const { vocabSize } = modelFromConfig(openCheckpoint(directory).config);
    const tokens = Array.from({ length: 24 }, (_, i) => 3 + ((i * 37) % (vocabSize - 3)));
    const ours = await ourLogits(backend, directory, tokens);
    // read back, it has the same parameters
    const names = (from: string) => openCheckpoint(from).model.parameters.map((parameter) => parameter.name);
    expect(names(file)).toEqual(names(directory));
    const model = await loadInLlamaCpp(file);
    try {
      const theirs = await logProbabilities(model, tokens, vocabSize);
      let difference = 0;
      let scale = 0;
      ours.forEach((row, position) => {
        const expected = centered(theirs[position]!);
        centered(row).forEach((value, i) => {
          difference = Math.max(difference, Math.abs(value - expected[i]!));
          scale = Math.max(scale, Math.abs(expected[i]!));
        });
      });
      expect(scale).toBeGreaterThan(0.1);
      expect(difference / scale).toBeLessThan(1e-3);
    } finally {
      await model.dispose();
    }
  });

  it.each(cases)("200 greedy tokens of %s", async (name, make) => {
    const directory = make();
    const file = path.join(root, `${name}.gguf`);
    await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
    const model = await loadInLlamaCpp(file);
    try {
      const prompt = model.tokens.bos === null ? [5, 7, 11] : [Number(model.tokens.bos), ...model.tokenize("Once")];
      const theirs = await greedyTokens(model, prompt, 200);
      // one pass over the whole text: each token must be the likeliest after those before it
      const rows = await ourLogits(backend, directory, [...prompt, ...theirs]);
      const ours = rows.slice(prompt.length - 1, -1).map((row) => row.indexOf(row.reduce((a, b) => Math.max(a, b))));
      expect(theirs).toHaveLength(200);
      expect(ours).toEqual(theirs);
    } finally {
      await model.dispose();
    }
  });
});
