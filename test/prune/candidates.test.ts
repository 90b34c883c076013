import { describe, expect, it } from "vitest";
import { deviceProfile, fitDevice } from "../../src/devices/index.js";
import { countParameters, modelFromConfig } from "../../src/models/index.js";
import { mostPromising } from "../../src/prune/candidates.js";
import {
  type AxisSizes,
  axisSizes,
  enumerateCandidates,
  largestOf,
  parametersAt,
  parseTarget,
  planFor,
  retainedImportance,
} from "../../src/prune/index.js";

/** Mistral NeMo's published configuration. */
const nemo = modelFromConfig({
  model_type: "mistral",
  vocab_size: 131072,
  hidden_size: 5120,
  intermediate_size: 14336,
  num_hidden_layers: 40,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 128,
  max_position_embeddings: 131072,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: false,
});

const throws = (work: () => unknown): boolean => {
  try {
    work();
    return false;
  } catch {
    return true;
  }
};

/** Counted by hand: embeddings and head, and in each layer q and o, k and v, the three of the FFN, two norms. */
const byHand = (hidden: number, ffn: number, layers: number) =>
  2 * 131072 * hidden +
  layers * (2 * hidden * 32 * 128 + 2 * hidden * 8 * 128 + 3 * hidden * ffn + 2 * hidden) +
  hidden;

describe("the importance that a plan keeps", () => {
  it("is none of layers that are cut, of which those of least influence go first", () => {
    const model = modelFromConfig({
      model_type: "llama",
      vocab_size: 32,
      hidden_size: 32,
      intermediate_size: 64,
      num_hidden_layers: 4,
      num_attention_heads: 4,
    });
    const ffn = Array.from({ length: 4 }, (_, layer): [string, Float32Array] => [
      `layers.${layer}.ffn`,
      new Float32Array(64).fill(1),
    ]);
    const scores = new Map([...ffn, ["layers", Float32Array.of(4, 1, 2, 3)] as const]);
    const half = planFor(model, { layers: 2 }, [1, 2, 3, 0]);
    expect(half.keptLayers).toEqual([0, 3]);
    // of four FFNs two, and of the layers' influence 7 of 10
    expect(retainedImportance(model, half, scores)).toBeCloseTo((2 + 0.7) / 5, 6);
    const narrow = planFor(model, { ffn: 32 }, []);
    expect(retainedImportance(model, narrow, scores)).toBeCloseTo((4 * 0.5 + 1) / 5, 6);
    // 0.78 of the importance is left without the layer that counts least, 0.72 without the first, 0.75 with narrower networks
    const [shallow, thin] = [{ layers: 3 }, { ffn: 44 }].map((sizes) => ({ sizes, parameters: 0 }));
    const thinner = { sizes: { ffn: 36 }, parameters: 0 };
    expect(mostPromising(model, [thin!, thinner, shallow!], scores, 2)).toEqual([shallow, thin]);
  });
});

describe("the plan for Mistral NeMo", () => {
  it("counts the parameters of the 12B and of the published 8B", () => {
    expect(countParameters(nemo.parameters, nemo.sizes)).toBe(byHand(5120, 14336, 40));
    expect(parametersAt(nemo, { hidden: 4096, ffn: 11520 })).toBe(byHand(4096, 11520, 40));
    expect((byHand(4096, 11520, 40) / 1e9).toFixed(2)).toBe("8.41"); // as published
  });

  it("lists that architecture among the candidates for 8.4B", () => {
    const target = parseTarget("8.4B", nemo, 16);
    if (target.kind !== "parameters") throw new Error("8.4B is a number of parameters");
    for (const axes of [
      ["hidden", "ffn"],
      ["hidden", "ffn", "layers"],
    ] as const) {
      const candidates = enumerateCandidates(nemo, target.parameters, { axes });
      const published = candidates.find(
        ({ sizes }) => sizes.hidden === 4096 && sizes.ffn === 11520 && sizes.layers === 40,
      );
      expect(published?.parameters).toBe(byHand(4096, 11520, 40));
      for (const { sizes, parameters } of candidates.slice(0, 50)) {
        expect(Math.abs(parameters / 8.4e9 - 1)).toBeLessThanOrEqual(0.05);
        expect(parameters).toBe(byHand(largestOf(sizes.hidden), largestOf(sizes.ffn), largestOf(sizes.layers)));
      }
    }
  });

  it("says what is nearest when the limits leave nothing", () => {
    expect(() => enumerateCandidates(nemo, 1e9, { axes: ["hidden", "ffn"] })).toThrow(
      /the nearest that the limits allow has \d+ \(hidden=3072,ffn=5888/,
    );
  });
});

describe("targets", () => {
  it.each([
    ["8.4B", 8.4e9],
    ["8400M", 8.4e9],
    ["0.5x", 6_123_891_200],
    ["8GiB", 2 ** 32],
    ["16GB", 8e9],
  ])("%s is %d parameters", (text, parameters) => {
    expect(parseTarget(text, nemo, 16)).toEqual({ kind: "parameters", parameters });
  });
  it("are sizes when they name them", () => {
    expect(parseTarget("hidden=4096, ffn=11520", nemo, 16)).toEqual({
      kind: "sizes",
      sizes: { hidden: 4096, ffn: 11520 },
    });
  });
  it.each(["", "big", "-3B", "0x", "hidden=", "width=3", "hidden=4.5"])(
    "%j is refused with what is accepted",
    (text) => {
      expect(() => parseTarget(text, nemo, 16)).toThrow(/is not understood/);
    },
  );
  it("larger than the model is refused", () => {
    expect(() => parseTarget("13B", nemo, 16)).toThrow(/more than the model's/);
  });
});

describe("a model of which some layers do without attention or network", () => {
  const skipping = modelFromConfig({
    model_type: "llama",
    vocab_size: 1000,
    hidden_size: 256,
    num_hidden_layers: 4,
    intermediate_size: [512, 512, 0, 512],
    num_attention_heads: [8, 0, 8, 8],
    num_key_value_heads: [4, 0, 4, 4],
  });

  it("is cut to a number of parameters, each block where there is one", () => {
    const count = countParameters(skipping.parameters, skipping.sizes);
    const candidates = enumerateCandidates(skipping, 0.7 * count, { axes: ["hidden", "ffn", "kvHeads"] });
    expect(candidates.length).toBeGreaterThan(4);
    for (const { sizes } of candidates) {
      expect([sizes.ffn].flat()[2]).toBe(0);
      expect([sizes.kvHeads].flat()[1]).toBe(0);
      expect(parametersAt(skipping, sizes)).toBeLessThan(0.8 * count);
    }
  });
});

describe("candidates of fewer layers for llama.cpp", () => {
  it("leave layers as it expects them: SmolLM 3's in fours", () => {
    const smollm3 = modelFromConfig({
      model_type: "smollm3",
      vocab_size: 1000,
      hidden_size: 256,
      intermediate_size: 1024,
      num_hidden_layers: 12,
      num_attention_heads: 8,
      num_key_value_heads: 2,
    });
    const target = 0.7 * countParameters(smollm3.parameters, smollm3.sizes);
    const depths = (forLlamaCpp: boolean) =>
      enumerateCandidates(smollm3, target, { axes: ["ffn", "layers"], forLlamaCpp }).map(({ sizes }) => sizes.layers);
    expect(depths(false).some((layers) => Number(layers) % 4 !== 0)).toBe(true);
    expect(depths(true).length).toBeGreaterThan(0);
    expect(depths(true).every((layers) => Number(layers) % 4 === 0)).toBe(true);
  });
});

describe("candidates for llama.cpp", () => {
  // its graph needs heads as wide together as the model
  const starcoder = modelFromConfig({
    model_type: "starcoder2",
    vocab_size: 1000,
    hidden_size: 256,
    intermediate_size: 1024,
    num_hidden_layers: 4,
    num_attention_heads: 8,
    num_key_value_heads: 2,
  });
  const runs = (sizes: AxisSizes) => {
    const plan = planFor(starcoder, sizes, []);
    return !throws(() => starcoder.resized(plan.sizes).gguf());
  };
  const target = 0.7 * countParameters(starcoder.parameters, starcoder.sizes);

  it("are those that it has a graph for", () => {
    const all = enumerateCandidates(starcoder, target, { axes: ["hidden", "ffn"] });
    const possible = enumerateCandidates(starcoder, target, { axes: ["hidden", "ffn"], forLlamaCpp: true });
    expect(possible).toEqual(all.filter(({ sizes }) => runs(sizes)));
    expect(possible.length).toBeGreaterThan(0);
    expect(possible.length).toBeLessThan(all.length);
    expect(() => enumerateCandidates(starcoder, target, { axes: ["hidden"], forLlamaCpp: true })).toThrow(
      /no architecture has/,
    );
  });

  it("are what a device is offered", () => {
    const { candidates } = fitDevice(starcoder, deviceProfile("phone-8gb"));
    expect(candidates.some(({ share }) => share < 0.8)).toBe(true);
    for (const { sizes } of candidates) expect(runs(sizes)).toBe(true);
  });
});

describe("a model whose layers differ", () => {
  const mixed = modelFromConfig({
    model_type: "llama",
    vocab_size: 1000,
    hidden_size: 256,
    head_dim: 32,
    num_hidden_layers: 4,
    intermediate_size: [512, 384, 512, 256],
    num_attention_heads: [8, 8, 4, 8],
    num_key_value_heads: [4, 2, 2, 4],
  });
  const count = countParameters(mixed.parameters, mixed.sizes);

  it("has a list where layers differ, and is cut by the same share in each", () => {
    expect(axisSizes(mixed)).toEqual({
      hidden: 256,
      ffn: [512, 384, 512, 256],
      heads: [8, 8, 4, 8],
      kvHeads: [4, 2, 2, 4],
      layers: 4,
    });
    const candidates = enumerateCandidates(mixed, 0.85 * count, {
      axes: ["hidden", "ffn", "layers"],
      maxDepthCut: 0.5,
    });
    expect(candidates.length).toBeGreaterThan(4);
    for (const { sizes, parameters } of candidates) {
      expect(Math.abs(parameters / (0.85 * count) - 1)).toBeLessThanOrEqual(0.05);
      if (sizes.layers !== 4) continue; // which layers stay is not decided yet
      const plan = planFor(mixed, sizes, [0, 1, 2, 3]);
      const smaller = mixed.resized(plan.sizes, plan.keptLayers);
      expect(countParameters(smaller.parameters, smaller.sizes)).toBe(parameters);
    }
  });

  it("takes one size for all as the most that each layer has, a list as it is, and single layers by name", () => {
    const ffn = (wanted: string) => {
      const target = parseTarget(wanted, mixed, 16);
      if (target.kind !== "sizes") throw new Error("sizes were named");
      const plan = planFor(mixed, target.sizes, [0, 1, 2, 3]);
      return mixed.resized(plan.sizes, plan.keptLayers).config.intermediate_size;
    };
    expect(ffn("ffn=384")).toEqual([384, 384, 384, 256]);
    expect(ffn("ffn=400/300/200/100")).toEqual([400, 300, 200, 100]);
    expect(ffn("layers.2.ffn=128")).toEqual([512, 384, 128, 256]);
    expect(() => ffn("ffn=400/300")).toThrow(/2 sizes are given for 4 layers/);
  });

  it("keeps the sizes of the layers that stay", () => {
    const plan = planFor(mixed, { layers: 2 }, [1, 2, 0, 3]);
    expect(plan.keptLayers).toEqual([0, 3]);
    expect(mixed.resized(plan.sizes, plan.keptLayers).config.num_key_value_heads).toBe(4);
    expect(mixed.resized(plan.sizes, plan.keptLayers).config.intermediate_size).toEqual([512, 256]);
  });

  it("is weighed for devices", () => {
    const { candidates } = fitDevice(mixed, deviceProfile("phone-4gb"));
    expect(candidates.some(({ sizes }) => Array.isArray(sizes.ffn) && sizes.ffn[0]! < 512)).toBe(true);
  });
});

describe("axes come from the model", () => {
  const gpt2 = modelFromConfig({
    model_type: "gpt2",
    n_embd: 64,
    n_head: 4,
    n_layer: 4,
    n_positions: 64,
    vocab_size: 96,
  });

  it("and others are refused by name", () => {
    expect(gpt2.axes.map(({ name }) => name)).toEqual(["ffn", "layers"]);
    expect(() => parseTarget("hidden=32", gpt2, 16)).toThrow(/of a gpt2 model ffn, layers can be cut/);
    expect(() => enumerateCandidates(gpt2, 1e5, { axes: ["heads"] })).toThrow(/gpt2 has no axis heads/);
    expect(() => enumerateCandidates(gpt2, 1e5, { axes: ["ffn"], divisors: { ffn: 0 } })).toThrow(/multiples of 0/);
  });

  it("and sizes that its format refuses are not offered", () => {
    const gemma = modelFromConfig({
      model_type: "gemma2",
      num_hidden_layers: 4,
      vocab_size: 1000,
      hidden_size: 96,
      intermediate_size: 256,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      head_dim: 16,
    });
    const total = countParameters(gemma.parameters, gemma.sizes);
    const found = enumerateCandidates(gemma, 0.8 * total, { axes: ["hidden", "ffn"] });
    expect(found.every(({ sizes }) => largestOf(sizes.hidden) % 6 === 0)).toBe(true);
  });
});
