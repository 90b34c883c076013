import path from "node:path";
import { describe, expect, it } from "vitest";
import { loadWeights, type ModelTensors, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { type AxisSizes, axisSizes, keptIndices, planFor, prune, type Scores } from "../../src/prune/index.js";
import { Graph, gradients, ops } from "../../src/tensor/index.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { changed, fixtures, fixtureTokens } from "../refit/cuts.js";
import { logitsOf, relativeDifference } from "./architectures.js";

/** Importance of what is cut, which does not matter where all of it is. */
const scoresOf = ({ model }: ModelTensors): Scores =>
  new Map(model.axes.flatMap(({ dimensions }) => dimensions.map((name) => [name, new Float32Array(1024).fill(1)])));

describe.each(composedTestBackends)("a layer without some of its blocks, on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);
  const original = openCheckpoint(path.join(fixtures, "tied"));
  const tokens = fixtureTokens.evaluation.slice(0, 4);

  function cutTo(model: ModelTensors, wanted: AxisSizes, layerOrder: readonly number[] = []) {
    const plan = planFor(model.model, wanted, layerOrder);
    return prune(model, plan, keptIndices(model.model, plan, scoresOf(model)));
  }

  it.each([
    ["feed-forward network", { "layers.1.ffn": 0 }, /layers\.1\.mlp\.down_proj/],
    ["attention", { "layers.1.kvHeads": 0 }, /layers\.1\.self_attn\.o_proj/],
    ["attention in the first", { "layers.0.kvHeads": 0 }, /layers\.0\.self_attn\.o_proj/],
    ["both", { "layers.1.ffn": 0, "layers.1.kvHeads": 0 }, /layers\.1\.(mlp\.down_proj|self_attn\.o_proj)/],
  ])("computes what it would if it gave nothing: %s", async (__, wanted, writers) => {
    const idle = changed(original, (name, data) => {
      if (writers.test(name)) data.fill(0);
    });
    const cut = cutTo(original, wanted);
    expect(cut.model.parameters.some(({ name }) => writers.test(name))).toBe(false);
    const [skipped, zeroed] = [await logitsOf(backend, cut, tokens), await logitsOf(backend, idle, tokens)];
    expect(relativeDifference(skipped, zeroed)).toBeLessThan(1e-6);
    expect(relativeDifference(skipped, await logitsOf(backend, original, tokens))).toBeGreaterThan(1e-3);
  });

  it.each([false, true])("passes the gradient on, recomputed: %s", async (recompute) => {
    const { model, source } = cutTo(original, { "layers.1.ffn": 0, "layers.1.kvHeads": 0 });
    const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: true });
    const g = new Graph(backend, { computeType: "f32", recompute });
    try {
      const input = g.input("tokens", "i32", [1, 8]);
      const logits = model.forward(g, weights.get, input).logits();
      const first = weights.get(model.steps[0]!.writer.name);
      const gradient = g.output(gradients(g, ops.mean(g, ops.square(g, logits)), [first])[0]!);
      g.write(
        input,
        Int32Array.from({ length: 8 }, (_unused, i) => i + 3),
      );
      await g.run();
      expect(g.read(gradient).some((value) => Math.abs(value) > 1e-6)).toBe(true);
    } finally {
      g.free();
      weights.free();
    }
  });

  it("can be cut further, but not to layers that all do without the same block", async () => {
    const skipping = cutTo(original, { "layers.1.ffn": 0, "layers.0.kvHeads": 0 });
    const ffn = original.model.sizes["layers.0.ffn"]!;
    const smaller = cutTo(skipping, { ffn: ffn / 2, kvHeads: 1 });
    expect(axisSizes(smaller.model)).toMatchObject({
      ffn: [ffn / 2, 0],
      kvHeads: [0, 1],
      heads: [0, expect.anything()],
    });
    expect(() => cutTo(skipping, { layers: 1 }, [0])).toThrow(/ffn=0 in every layer/);
  });
});

describe("sizes of 0", () => {
  const config = {
    model_type: "llama",
    vocab_size: 64,
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 3,
    num_attention_heads: 4,
    num_key_value_heads: 2,
  };

  it.each([
    [{ intermediate_size: 0 }, /intermediate_size/],
    [{ num_attention_heads: [0, 0, 0], num_key_value_heads: [0, 0, 0] }, /num_attention_heads is 0 in every layer/],
    [{ num_attention_heads: [4, 0, 4] }, /0 attention heads cannot be divided among 2/],
    [{ num_key_value_heads: [2, 0, 2] }, /4 attention heads cannot be divided among 0/],
    [{ model_type: "qwen3", intermediate_size: [96, 0, 96] }, /intermediate_size/],
  ])("are refused where they mean nothing: %j", (changes, message) => {
    expect(() => modelFromConfig({ ...config, ...changes })).toThrow(message);
  });

  it("are refused for a whole axis, and where a family has no list", () => {
    const model = modelFromConfig(config);
    expect(() => planFor(model, { ffn: 0 }, [])).toThrow(/ffn=0 in every layer/);
    expect(() => planFor(model, { "layers.1.heads": 0 }, [])).toThrow(/layers.1.heads=0 cannot be shared/);
    expect(() => planFor(model, { hidden: 0 }, [])).toThrow(/choose a whole number from 1/);
    const qwen = modelFromConfig({ ...config, model_type: "qwen3" });
    expect(() => planFor(qwen, { "layers.1.ffn": 0 }, [])).toThrow(/choose a whole number from 1/);
  });

  it("are refused as GGUF where the first layer has no attention, which llama.cpp cannot compute", () => {
    const model = modelFromConfig({ ...config, num_attention_heads: [0, 4, 4], num_key_value_heads: [0, 2, 2] });
    expect(() => model.gguf()).toThrow(/attention in the first layer/);
  });
});
