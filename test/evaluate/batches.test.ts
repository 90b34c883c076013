import fc from "fast-check";
import { expect, it } from "vitest";
import { Sequences } from "../../src/data/index.js";
import { spreadBatches } from "../../src/evaluate/batches.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

it("batches of samples have one size, hold almost as many as are asked for, and none twice", () => {
  const number = fc.integer({ min: 1, max: 60 });
  const tokens = streamOf(Array(4 * 60 + 1).fill(1), temporaryDirectory());
  fc.assert(
    fc.property(number, number, number, (count, samples, batchSize) => {
      const sequences = new Sequences(tokens.part(0, 4 * count + 1), 4);
      const batches = spreadBatches(sequences, samples, batchSize);
      const all = batches.flat();
      const wanted = Math.min(count, samples);
      expect(new Set(batches.map(({ length }) => length)).size).toBe(1);
      expect(batches[0]!.length).toBeLessThanOrEqual(batchSize);
      expect(new Set(all).size).toBe(all.length);
      expect(Math.max(...all)).toBeLessThan(count);
      expect(all.length).toBeLessThanOrEqual(wanted);
      expect(all.length).toBeGreaterThan(wanted - batches.length); // one a batch less, at most
    }),
  );
});
