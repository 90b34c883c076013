import { describe, expect, it } from "vitest";
import { modelFromConfig } from "../../src/models/index.js";
import { type AxisSizes, axisSizes, planFor, planWithLayers } from "../../src/prune/index.js";

const llama = (changes: object = {}) =>
  modelFromConfig({
    model_type: "llama",
    vocab_size: 100,
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 4,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 8,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 128,
    tie_word_embeddings: false,
    ...changes,
  });

const sizesOf = (model: ReturnType<typeof llama>, wanted: AxisSizes, layers = [0, 1, 2, 3]) =>
  planWithLayers(model, wanted, layers).sizes;

describe("a plan", () => {
  it("refuses more layers than there are, and several numbers of layers", () => {
    for (const layers of [5, 40, [3, 2]])
      expect(() => planFor(llama(), { layers }, [0, 1, 2, 3])).toThrow(/the model has 4 layers; give one number/);
  });

  it("cuts heads with their key-value heads, where only those are named", () => {
    const sizes = sizesOf(llama(), { kvHeads: 3 });
    for (let layer = 0; layer < 4; layer++)
      expect([sizes[`layers.${layer}.kvHeads`], sizes[`layers.${layer}.heads`]]).toEqual([3, 6]);
  });

  it("keeps the key-value heads where only heads are named, and cuts both where each head has its own", () => {
    expect(sizesOf(llama(), { heads: 4 })["layers.0.kvHeads"]).toBe(4);
    expect(sizesOf(llama({ num_key_value_heads: 8 }), { heads: 6 })["layers.0.kvHeads"]).toBe(6);
    expect(sizesOf(llama(), { heads: 4, kvHeads: 2 })["layers.3.kvHeads"]).toBe(2);
  });

  it("refuses heads that the key-value heads cannot share, and more for each than there were", () => {
    expect(() => sizesOf(llama(), { heads: 7 })).toThrow(/heads=7 cannot be shared by kvHeads=4/);
    expect(() => sizesOf(llama(), { heads: 8, kvHeads: 2 })).toThrow(/a multiple of it and at most 2 times it/);
  });

  it("takes a size for each layer, in the original's order, and keeps those of the layers that stay", () => {
    const sizes = sizesOf(llama(), { ffn: [96, 64, 32, 16] }, [0, 3]);
    expect([sizes.layers, sizes["layers.0.ffn"], sizes["layers.1.ffn"]]).toEqual([2, 96, 16]);
    expect(sizes["layers.2.ffn"]).toBeUndefined();
    expect(() => sizesOf(llama(), { ffn: [96, 64] })).toThrow(/ffn: 2 sizes are given for 4 layers/);
  });

  it("takes a single size as an upper limit where layers differ", () => {
    const uneven = llama().resized(sizesOf(llama(), { ffn: [96, 64, 32, 16] }));
    expect(axisSizes(uneven).ffn).toEqual([96, 64, 32, 16]);
    expect(axisSizes(llama()).ffn).toBe(96);
    const sizes = sizesOf(uneven, { ffn: 48 });
    expect([0, 1, 2, 3].map((layer) => sizes[`layers.${layer}.ffn`])).toEqual([48, 48, 32, 16]);
  });

  it("takes the size of one dimension alone", () => {
    const sizes = sizesOf(llama(), { "layers.2.ffn": 40 });
    expect([0, 1, 2, 3].map((layer) => sizes[`layers.${layer}.ffn`])).toEqual([96, 96, 40, 96]);
  });

  it("cuts the first layers of the order, and keeps the others in the model's", () => {
    expect(planFor(llama(), { layers: 2 }, [2, 0, 3, 1]).keptLayers).toEqual([1, 3]);
    expect(planFor(llama(), {}, [2, 0, 3, 1]).keptLayers).toEqual([0, 1, 2, 3]);
  });

  it.each<[string, AxisSizes, readonly number[], RegExp]>([
    ["more layers than there are", {}, [0, 1, 2, 3, 3], /layers=5: the model has 4/],
    ["no layers", {}, [], /layers=0: the model has 4/],
    ["an axis that the model does not have", { experts: 2 }, [0], /experts is not understood.*hidden/],
    ["a size beyond the original's", { hidden: 128 }, [0], /hidden=128/],
    ["a size of 0", { ffn: 0 }, [0], /ffn=0/],
  ])("refuses %s", (_, wanted, layers, message) => {
    expect(() => planWithLayers(llama(), wanted, layers)).toThrow(message);
  });
});
