import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Alternative, cheapestWithin } from "../../src/system/knapsack.js";

const alternative: fc.Arbitrary<Alternative> = fc.record({
  size: fc.integer({ min: 0, max: 1000 }),
  cost: fc.double({ min: 0, max: 1, noNaN: true }),
});
const items = fc.array(fc.array(alternative, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 5 });

/** All possible choices. */
function* choices(all: readonly (readonly Alternative[])[]): Generator<readonly Alternative[]> {
  const [first, ...rest] = all;
  if (first === undefined) return yield [];
  for (const choice of first) for (const others of choices(rest)) yield [choice, ...others];
}

const sum = (choice: readonly Alternative[], field: "size" | "cost"): number =>
  choice.reduce((total, each) => total + each[field], 0);

describe("one alternative for each item within a limit", () => {
  it("costs as little as the best of all choices", async () => {
    await fc.assert(
      fc.asyncProperty(items, fc.integer({ min: 0, max: 4000 }), async (all, limit) => {
        const fitting = [...choices(all)].filter((choice) => sum(choice, "size") <= limit);
        const chosen = await cheapestWithin(all, limit);
        expect(chosen === undefined).toBe(fitting.length === 0);
        if (chosen === undefined) return;
        const choice = chosen.map((j, i) => all[i]![j]!);
        expect(choice).toHaveLength(all.length);
        expect(sum(choice, "size")).toBeLessThanOrEqual(limit);
        const best = Math.min(...fitting.map((each) => sum(each, "cost")));
        const worst = Math.max(...all.flat().map(({ cost }) => cost));
        expect(sum(choice, "cost")).toBeLessThanOrEqual(best * (1 + 1e-3) + 1e-6 * worst);
      }),
      { numRuns: 25 },
    );
  });
});
