import { elementAt } from "../../src/system/arrays.js";

export const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / x.length;

/** The sample's standard deviation; 0 for one value. */
export const spread = (x: readonly number[]): number =>
  Math.sqrt(x.reduce((sum, value) => sum + (value - mean(x)) ** 2, 0) / Math.max(1, x.length - 1));

/** Mean ± standard deviation; one value stands alone. */
export const summary = (x: readonly number[], digits = 4): string =>
  x.length === 1 ? elementAt(x, 0).toFixed(digits) : `${mean(x).toFixed(digits)} ± ${spread(x).toFixed(digits)}`;
