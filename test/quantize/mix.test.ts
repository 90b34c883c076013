import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bestMix } from "../../src/quantize/mix.js";
import type { Sensitivity, TypeCost } from "../../src/quantize/sensitivity.js";

const cost: fc.Arbitrary<TypeCost> = fc.record({
  dtype: fc.constantFrom("q8_0" as const, "q4_k" as const, "q2_k" as const),
  bytes: fc.integer({ min: 1, max: 1000 }),
  loss: fc.double({ min: 1e-9, max: 1, noNaN: true }),
});
const problem = fc.record({
  costs: fc.array(fc.array(cost, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 5 }),
  room: fc.double({ min: 0, max: 1, noNaN: true }),
});

/** All possible choices. */
function* choices(costs: readonly (readonly TypeCost[])[]): Generator<readonly TypeCost[]> {
  const [first, ...rest] = costs;
  if (first === undefined) return yield [];
  for (const choice of first) for (const others of choices(rest)) yield [choice, ...others];
}

const total = (choice: readonly TypeCost[], field: "bytes" | "loss"): number =>
  choice.reduce((sum, c) => sum + c[field], 0);

describe("the mix of types for a size", () => {
  it("is as good as the best of all choices, and fits", async () => {
    await fc.assert(
      fc.asyncProperty(problem, async ({ costs, room }) => {
        const sensitivity: Sensitivity = new Map(costs.map((list, i) => [`t${i}`, list]));
        const sizes = [...choices(costs)].map((choice) => total(choice, "bytes"));
        const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
        const limit = Math.floor(least + room * (most - least));
        const best = Math.min(
          ...[...choices(costs)].filter((c) => total(c, "bytes") <= limit).map((c) => total(c, "loss")),
        );
        const mix = await bestMix(sensitivity, limit);
        expect(mix.bytes).toBeLessThanOrEqual(limit);
        const worst = Math.max(...costs.flat().map(({ loss }) => loss));
        expect(mix.expectedLoss).toBeLessThanOrEqual(best * (1 + 1e-3) + 1e-6 * worst);
        const types = [...mix.types.values()];
        const isMix = (choice: readonly TypeCost[]) =>
          total(choice, "bytes") === mix.bytes &&
          Math.abs(total(choice, "loss") - mix.expectedLoss) <= 1e-12 &&
          choice.every(({ dtype }, i) => dtype === types[i]);
        expect([...mix.types.keys()]).toEqual([...sensitivity.keys()]);
        expect([...choices(costs)].some(isMix)).toBe(true);
      }),
      { numRuns: 60 },
    );
  });

  it("is refused for a size that is too small, with the smallest that is possible", async () => {
    const sensitivity: Sensitivity = new Map([["t", [{ dtype: "q2_k" as const, bytes: 100, loss: 1 }]]]);
    await expect(bestMix(sensitivity, 99.5)).rejects.toThrow(/100 bytes.* only 99 are left.*--size/);
    await expect(bestMix(sensitivity, -7)).rejects.toThrow(/only 0 are left/);
  });

  it("takes whole types where parts of them would be better", async () => {
    const large = { dtype: "q8_0", bytes: 10, loss: 0 } as const;
    const small = { dtype: "q2_k", bytes: 4, loss: 1e-7 } as const; // losses far below the solver's tolerance of 1e-6
    const sensitivity: Sensitivity = new Map([
      ["a", [large, small]],
      ["b", [large, { ...small, loss: 2e-7 }]],
    ]);
    // half of each large type would fit in 17 bytes, and lose less
    expect(await bestMix(sensitivity, 17)).toEqual({
      types: new Map([
        ["a", "q2_k"],
        ["b", "q8_0"],
      ]),
      bytes: 14,
      expectedLoss: 1e-7,
    });
  });
});
