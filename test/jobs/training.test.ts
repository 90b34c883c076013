import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { Backend } from "../../src/ggml/index.js";
import { compress, distill } from "../../src/jobs/index.js";
import { checkTrainingFits, trainOptionsFor } from "../../src/jobs/training.js";
import { openCheckpoint } from "../../src/models/index.js";
import { temporaryDirectory } from "../temporary.js";

const place = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const teacher = openCheckpoint(place);
const { model } = teacher;

it("takes steps of 4096 tokens by default, down to 256 in short runs, and any that are asked for", () => {
  const batchOf = (tokens: number, sequenceLength: number, asked: { batchSize?: number } = {}) =>
    trainOptionsFor(model, { tokens, sequenceLength, ...asked }).batchSize;
  expect(batchOf(1e9, 128)).toBe(32);
  expect(batchOf(1e6, 128)).toBe(32);
  expect(batchOf(256_000, 128)).toBe(10); // 200 steps of 1280 tokens
  expect(batchOf(1000, 128)).toBe(2);
  expect(batchOf(1000, 128, { batchSize: 6 })).toBe(6);
});

describe("a training that does not fit in memory", () => {
  const backend = Backend.open({ device: "cpu" });
  afterAll(() => backend.free());
  const directory = temporaryDirectory();
  const data = path.join(directory, "stories.txt");
  writeFileSync(data, corpus(5, 60));
  const wanted = { tokens: 128, sequenceLength: 64, batchSize: 2 };

  /** The least memory, to 4 KiB, in which one sequence of a distillation into a model of the teacher's size fits. */
  function leastMemory(recompute: boolean): number {
    const settings = trainOptionsFor(model, { ...wanted, recompute });
    const fits = (memoryBytes: number): boolean => {
      try {
        checkTrainingFits({ backend, model, settings, options: { memoryBytes }, teacher });
        return true;
      } catch {
        return false;
      }
    };
    let [little, enough] = [0, 2 ** 30];
    while (enough - little > 4096) {
      const middle = Math.floor((little + enough) / 2);
      if (fits(middle)) enough = middle;
      else little = middle;
    }
    return enough;
  }

  it("is known beforehand to the byte, with weights that take no place, and does fit where it was said to", async () => {
    const before = backend.takenBytes;
    const [kept, recomputed] = [leastMemory(false), leastMemory(true)];
    expect(backend.takenBytes).toBe(before);
    expect(recomputed).toBeLessThan(kept);
    const run = (memoryBytes: number, recompute: boolean) => {
      const out = path.join(directory, `${memoryBytes}`);
      const settings = { ...wanted, recompute };
      return distill({ device: "cpu", teacher: place, student: place, data: [data], settings, out, memoryBytes });
    };
    await run(recomputed, true);
    await expect(run(recomputed - 4096, true)).rejects.toThrow(/one sequence of 64 tokens takes/);
    // the same run goes on with less memory
    await expect(run(kept - 4096, false)).rejects.toThrow(/one sequence of 64 tokens takes .*--recompute/);
    await run(kept - 4096, true);
  });

  it("is refused before anything is measured or searched", async () => {
    const stages: string[] = [];
    const compressed = compress({
      device: "cpu",
      model: place,
      target: "0.9x",
      data: [data],
      settings: { ...wanted, sequenceLength: 256 },
      out: path.join(directory, "early"),
      memoryBytes: leastMemory(true),
      onProgress: ({ stage }) => void stages.push(stage),
    });
    await expect(compressed).rejects.toThrow(/one sequence of 256 tokens takes/);
    expect(stages).toEqual([]);
  });
});
