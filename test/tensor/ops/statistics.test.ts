import { afterAll, describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/system/errors.js";
import { Random } from "../../../src/system/random.js";
import { ops } from "../../../src/tensor/index.js";
import { backends, furthest, normal, type Values } from "./compute.js";

const { each, free } = backends();
afterAll(free);

/** Σ_b (mean_s ‖x[b, s, i]‖)² by its definition. */
function magnitudes({ shape, data }: Values, batch: number, size: number): number[] {
  const [rows = 0, width = 0] = shape;
  const [positions, channels] = [rows / batch, width / size];
  return Array.from({ length: size }, (_, i) => {
    let sum = 0;
    for (let b = 0; b < batch; b++) {
      let mean = 0;
      for (let s = 0; s < positions; s++) {
        const from = (b * positions + s) * width + i * channels;
        mean += Math.hypot(...data.subarray(from, from + channels)) / positions;
      }
      sum += mean ** 2;
    }
    return sum;
  });
}

describe.each(each)("on %s", (_, compute) => {
  it.each([
    { batch: 1, positions: 5, size: 12, channels: 1 },
    { batch: 3, positions: 7, size: 10, channels: 1 },
    { batch: 3, positions: 7, size: 6, channels: 8 },
    { batch: 4, positions: 1, size: 1, channels: 33 },
  ])("magnitudes of $size groups of $channels channels are added to what is there", async (sizes) => {
    const { batch, positions, size, channels } = sizes;
    const random = new Random(5);
    const x = normal(random, [batch * positions, size * channels]);
    const before = normal(random, [1, size]);
    const [sums] = await compute([before, x], (g, [sum, values]) => [ops.addMagnitudes(g, sum!, values!, { batch })]);
    const expected = magnitudes(x, batch, size).map((value, i) => value + before.data[i]!);
    expect(furthest(sums!, expected, 1e-5)).toBeLessThan(1e-5);
  });

  it("the mean cosine is its definition, for fewer rows than threads and more than partial sums", async () => {
    for (const rows of [1, 3, 150]) {
      const random = new Random(rows);
      const [x, y] = [normal(random, [rows, 37]), normal(random, [rows, 37], 3)];
      y.data.set(x.data.subarray(0, 37)); // the first row is the same in both: its cosine is 1
      const [mean] = await compute([x, y], (g, [a, b]) => [ops.meanCosine(g, a!, b!)]);
      let expected = 0;
      for (let row = 0; row < rows; row++) {
        const [a, b] = [x, y].map(({ data }) => data.subarray(row * 37, (row + 1) * 37)) as [
          Float32Array,
          Float32Array,
        ];
        const dot = a.reduce((sum, value, i) => sum + value * b[i]!, 0);
        expected += dot / Math.hypot(...a) / Math.hypot(...b) / rows;
      }
      expect(furthest(mean!, [expected])).toBeLessThan(1e-5);
    }
  });

  it("the cosine of a row of zeros is 0", async () => {
    const [x, y] = [normal(new Random(1), [2, 8]), normal(new Random(2), [2, 8])];
    y.data.set(x.data);
    x.data.fill(0, 0, 8);
    const [mean] = await compute([x, y], (g, [a, b]) => [ops.meanCosine(g, a!, b!)]);
    expect(furthest(mean!, [0.5])).toBeLessThan(1e-5);
  });

  it("of rows that cannot be grouped or compared are refused by name", async () => {
    const random = new Random(1);
    const [x, y] = [normal(random, [6, 8]), normal(random, [6, 4])];
    const sums = (size: number, batch: number) =>
      compute([normal(random, [1, size]), x], (g, [sum, values]) => [ops.addMagnitudes(g, sum!, values!, { batch })]);
    await expect(sums(8, 4)).rejects.toThrow(/x1 f32 \[6, 8\] is not 4 sequences of 8 groups of channels/);
    await expect(sums(3, 2)).rejects.toThrow(/is not 2 sequences of 3 groups/);
    await expect(sums(3, 2)).rejects.toThrow(ShapeError);
    const cosine = compute([x, y], (g, [a, b]) => [ops.meanCosine(g, a!, b!)]);
    await expect(cosine).rejects.toThrow(/x0 f32 \[6, 8\] and x1 f32 \[6, 4\] are not rows of the same length/);
  });
});
