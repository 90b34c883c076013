import { describe, expect, it } from "vitest";
import { countParameters, modelFromConfig } from "../../src/models/index.js";
import { enumerateCandidates, largestOf, parametersAt, parseTarget } from "../../src/prune/index.js";

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

/** The count by hand: embeddings and head, and in each layer q and o, k and v, the three of the FFN, two norms. */
const byHand = (hidden: number, ffn: number, layers: number) =>
  2 * 131072 * hidden +
  layers * (2 * hidden * 32 * 128 + 2 * hidden * 8 * 128 + 3 * hidden * ffn + 2 * hidden) +
  hidden;

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
      /the nearest that the limits allow has \d+ \(hidden=3072,ffn=8704/,
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
