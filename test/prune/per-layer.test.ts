import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { modelFromConfig } from "../../src/models/index.js";
import { cheapestSizes, keptColumns, layerSizes, leastParameters, parametersAt } from "../../src/prune/index.js";

const changed = (changes: object) =>
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
const llama = changed({});

describe("the sizes that each layer may take", () => {
  it("go from the whole layer to 30 % of it in multiples of the divisor, and to none at all beyond the first layer", () => {
    const steps = layerSizes(llama, { axes: ["hidden", "ffn"], divisors: { ffn: 8 } });
    expect(steps.map(({ dimension }) => dimension)).toEqual([0, 1, 2, 3].map((layer) => `layers.${layer}.ffn`));
    for (const { sizes, parameters, dimension } of steps) {
      expect([sizes[0], sizes.at(-1)]).toEqual([96, dimension === "layers.0.ffn" ? 32 : 0]);
      expect(sizes).toContain(32);
      expect(sizes.every((size) => size % 8 === 0)).toBe(true);
      expect(parameters).toEqual(sizes.map((size) => parametersAt(llama, { [dimension]: size })));
    }
  });

  it("are those of whole key-value groups, of which the output projection keeps the channels", () => {
    const steps = layerSizes(llama, { axes: ["kvHeads"], maxWidthCut: 0.5 });
    expect(steps[2]).toMatchObject({ dimension: "layers.2.kvHeads", sizes: [4, 3, 2] });
    const scores = new Map([
      ["layers.2.kvHeads", Float32Array.of(1, 4, 3, 2)],
      ["layers.2.heads", new Float32Array(8).fill(1)],
    ]);
    const [whole, , half] = keptColumns(llama, steps[2]!, scores);
    expect(whole).toHaveLength(64);
    expect([...half!]).toEqual(Array.from({ length: 32 }, (_, i) => 16 + i)); // groups 1 and 2, two heads of 8 channels each
  });

  it("start from each layer's own size", () => {
    const uneven = changed({ intermediate_size: [96, 64, 96, 32] });
    const steps = layerSizes(uneven, { axes: ["ffn"], divisors: { ffn: 8 } });
    expect(steps.map(({ sizes }) => sizes[0])).toEqual([96, 64, 96, 32]);
  });

  it("are refused where a family's configuration has no list, and where no axis may be chosen", () => {
    const qwen = changed({ model_type: "qwen3" });
    expect(() => layerSizes(qwen, { axes: ["ffn"] })).toThrow(
      /cannot differ from layer to layer: qwen3.* one intermediate_size for all layers.*without --per-layer/,
    );
    expect(() => layerSizes(llama, { axes: ["hidden"] })).toThrow(/--axes \(hidden\) have none: add --axes ffn/);
  });
});

describe("the sizes of all layers", () => {
  it("cost as little as the best of all choices, and make no more parameters than allowed", async () => {
    const small = changed({ num_hidden_layers: 3 });
    const steps = layerSizes(small, { axes: ["ffn"], divisors: { ffn: 24 } });
    const costs = fc.tuple(
      ...steps.map(({ sizes: { length } }) =>
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: length, maxLength: length }),
      ),
    );
    const whole = parametersAt(small, {});
    await fc.assert(
      fc.asyncProperty(costs, fc.double({ min: 0.6, max: 1, noNaN: true }), async (costOf, share) => {
        const limit = Math.round(share * whole);
        const costAt = (layer: number, size: number) => costOf[layer]![steps[layer]!.sizes.indexOf(size)]!;
        const totals = steps[0]!.sizes.flatMap((a) =>
          steps[1]!.sizes.flatMap((b) =>
            steps[2]!.sizes.map((c) => ({
              parameters: parametersAt(small, { ffn: [a, b, c] }),
              cost: costAt(0, a) + costAt(1, b) + costAt(2, c),
            })),
          ),
        );
        const fitting = totals.filter(({ parameters }) => parameters <= limit).map(({ cost }) => cost);
        const found = await cheapestSizes(small, steps, costOf, limit);
        expect(found === undefined).toBe(fitting.length === 0);
        expect(fitting.length === 0).toBe(limit < leastParameters(small, steps));
        if (found === undefined) return;
        const sizes = [found.ffn!].flat();
        const each = sizes.length === 1 ? [sizes[0]!, sizes[0]!, sizes[0]!] : sizes;
        expect(parametersAt(small, found)).toBeLessThanOrEqual(limit);
        const cost = each.reduce((sum, size, layer) => sum + costAt(layer, size), 0);
        expect(cost).toBeLessThanOrEqual(Math.min(...fitting) * (1 + 1e-3) + 1e-6);
      }),
      { numRuns: 12 },
    );
  });
});
