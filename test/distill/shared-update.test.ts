import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { sharedOptions } from "../../src/distill/follow.js";
import { defaultTrainOptions } from "../../src/distill/index.js";
import { piecesOf } from "../../src/distill/shared-update.js";
import type { Pointer } from "../../src/ggml/index.js";
import { elementCount, type Tensor } from "../../src/tensor/index.js";

const tensor = (name: string, shape: readonly number[]): Tensor => ({
  name,
  shape,
  dtype: "f32",
  handle: 0n as Pointer,
  requiresGrad: true,
});

const shapes = fc.array(fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 2 }), {
  minLength: 1,
  maxLength: 12,
});

describe("the pieces of weights that ranks update", () => {
  it("cover every element once, in order, and are as large for each rank, but for whole vectors", () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 1, max: 9 }), (all, ranks) => {
        const weights = all.map((shape, i) => tensor(`w${i}`, shape));
        const pieces = piecesOf(weights, weights, ranks);
        const sizes = Array.from({ length: ranks }, () => 0);
        for (const weight of weights) {
          let at = 0;
          for (const { from, to, owner } of pieces.filter((piece) => piece.weight === weight)) {
            expect(from).toBe(at);
            expect(from % 64).toBe(0);
            expect(to).toBeGreaterThan(from);
            sizes[owner] = (sizes[owner] ?? 0) + to - from;
            at = to;
          }
          expect(at).toBe(elementCount(weight.shape));
        }
        const total = weights.reduce((sum, { shape }) => sum + elementCount(shape), 0);
        for (const size of sizes) expect(Math.abs(size - total / ranks)).toBeLessThanOrEqual(64);
      }),
    );
  });
});

describe("a batch that ranks share", () => {
  const options = defaultTrainOptions(64, 1000, 8, 12);

  it("has a micro-batch for each at least, and the same result as before", () => {
    expect(sharedOptions(options, 1).microBatchSize).toBe(12);
    expect(sharedOptions(options, 2).microBatchSize).toBe(6);
    expect(sharedOptions(options, 5).microBatchSize).toBe(2);
    expect(sharedOptions({ ...options, microBatchSize: 3 }, 2).microBatchSize).toBe(3);
    expect(sharedOptions(options, 12).batchSize).toBe(12);
  });

  it("is refused when it has fewer sequences than there are ranks", () => {
    expect(() => sharedOptions(options, 13)).toThrow(/batch of 12 sequences .* 13 processes: --batch-size 13/);
  });
});
