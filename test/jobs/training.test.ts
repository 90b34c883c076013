import path from "node:path";
import { expect, it } from "vitest";
import { trainOptionsFor } from "../../src/jobs/training.js";
import { openCheckpoint } from "../../src/models/index.js";

const { model } = openCheckpoint(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"));

it("takes steps of 4096 tokens by default, down to 256 in short runs, and any that are asked for", () => {
  const batchOf = (tokens: number, sequenceLength: number, asked: { batchSize?: number } = {}) =>
    trainOptionsFor(model, { tokens, sequenceLength, ...asked }).batchSize;
  expect(batchOf(1e9, 128)).toBe(32);
  expect(batchOf(1e6, 128)).toBe(32);
  expect(batchOf(256_000, 128)).toBe(10); // 200 steps of 1280 tokens
  expect(batchOf(1000, 128)).toBe(2);
  expect(batchOf(1000, 128, { batchSize: 6 })).toBe(6);
});
