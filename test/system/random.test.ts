import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Permutation, Random } from "../../src/system/random.js";

describe("Random", () => {
  it("gives the same numbers for the same seed and stream, others for another", () => {
    const draw = (seed: number, stream: number) => {
      const random = new Random(seed, stream);
      return Array.from({ length: 5 }, () => random.uint32());
    };
    expect(draw(1, 0)).toEqual(draw(1, 0));
    expect(draw(1, 0)).not.toEqual(draw(2, 0));
    expect(draw(1, 0)).not.toEqual(draw(1, 1));
  });

  it("draws uniform and normal numbers with the moments these have", () => {
    const random = new Random(3);
    const count = 200_000;
    let [mean, normalMean, variance] = [0, 0, 0];
    for (let i = 0; i < count; i++) {
      mean += random.uniform() / count;
      const z = random.normal();
      normalMean += z / count;
      variance += (z * z) / count;
    }
    expect(Math.abs(mean - 0.5)).toBeLessThan(5 * Math.sqrt(1 / 12 / count));
    expect(Math.abs(normalMean)).toBeLessThan(5 / Math.sqrt(count));
    expect(Math.abs(variance - 1)).toBeLessThan(5 * Math.sqrt(2 / count));
  });
});

describe("Permutation", () => {
  it("visits every index once, whatever the size and seed", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 3000 }), fc.nat(), (size, seed) => {
        const permutation = new Permutation(size, seed);
        const seen = new Set(Array.from({ length: size }, (_, i) => permutation.at(i)));
        expect(seen.size).toBe(size);
        expect(Math.max(...seen)).toBe(size - 1);
      }),
      { numRuns: 60 },
    );
  });

  it("does not leave neighbours together", () => {
    const permutation = new Permutation(10_000, 5);
    const kept = Array.from({ length: 9999 }, (_, i) => Math.abs(permutation.at(i) - permutation.at(i + 1)) === 1);
    expect(kept.filter(Boolean).length).toBeLessThan(20);
  });
});
