import { describe, expect, it } from "vitest";
import { inOrderOfErrors } from "../../src/quantize/sensitivity.js";
import { Random } from "../../src/system/random.js";

describe("what types cost a tensor", () => {
  it("grows with their error, is at least what was measured, and is never nothing", () => {
    const random = new Random(3);
    for (let trial = 0; trial < 50; trial++) {
      const measured = Array.from({ length: 1 + random.integer(12) }, () => {
        const error = random.uniform();
        const noise = random.uniform() < 0.3 ? 0 : random.uniform();
        return { error, loss: error * 2 * noise };
      });
      const costs = inOrderOfErrors(measured);
      const order = [...measured.keys()].sort((a, b) => measured[a]!.error - measured[b]!.error);
      for (const [i, at] of order.entries()) {
        expect(costs[at]).toBeGreaterThanOrEqual(measured[at]!.loss);
        expect(costs[at]).toBeGreaterThan(0);
        if (i > 0) expect(costs[at]).toBeGreaterThanOrEqual(costs[order[i - 1]!]!);
      }
    }
  });

  it("is what was measured where that is in order, and in order of the errors where nothing was", () => {
    const measured = [
      { error: 4, loss: 0.4 },
      { error: 1, loss: 0.1 },
      { error: 2, loss: 0.2 },
    ];
    expect(inOrderOfErrors(measured)).toEqual([0.4, 0.1, 0.2]);
    const nothing = inOrderOfErrors(measured.map(({ error }) => ({ error, loss: 0 })));
    expect(nothing[1]).toBeLessThan(nothing[2]!);
    expect(nothing[2]).toBeLessThan(nothing[0]!);
  });
});
