import { describe, expect, it } from "vitest";
import { median } from "../../src/system/statistics.js";

describe("the median", () => {
  it("is the value in the middle, or the mean of the two there", () => {
    expect(median([3, 10, 1])).toBe(3);
    expect(median([4, 10, 1, 2])).toBe(3);
    expect(median([7])).toBe(7);
    expect(median([])).toBeNaN();
  });

  it("leaves the values in their order", () => {
    const values = [3, 1, 2];
    median(values);
    expect(values).toEqual([3, 1, 2]);
  });
});
