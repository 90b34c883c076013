import { describe, expect, it } from "vitest";
import { largestDifference } from "../../src/check/compare.js";

const values = (...numbers: number[]) => [Float32Array.from(numbers)];

describe("the difference of a device's results", () => {
  it("is in parts of the largest expected number, however small that is", () => {
    expect(largestDifference(values(10, 20), values(10, 20))).toBe(0);
    expect(largestDifference(values(10, 21), values(10, 20))).toBeCloseTo(0.05, 12);
    expect(largestDifference(values(0.25), values(0.5))).toBe(0.5);
    expect(largestDifference(values(0, 0), values(0, 0))).toBe(0);
    expect(largestDifference(values(0, 0.25), values(0, 0))).toBe(0.25);
    expect(largestDifference([...values(1), ...values(3)], [...values(1), ...values(2)])).toBe(0.5);
  });

  it("is infinite where a number is none, or there are more or fewer", () => {
    for (const [actual, expected] of [
      [values(Number.NaN, 1), values(1, 1)],
      [values(1, Number.POSITIVE_INFINITY), values(1, 1)],
      [values(1), values(1, 1)],
      [[], values(1)],
    ] as const)
      expect(largestDifference(actual, expected)).toBe(Number.POSITIVE_INFINITY);
  });
});
