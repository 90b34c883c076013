import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../../../src/system/random.js";
import { ops } from "../../../src/tensor/index.js";
import { backends, furthest, normal } from "./compute.js";

const { each, free } = backends();
afterAll(free);

describe.each(each)("on %s", (_, compute) => {
  it("layer normalization is its definition, far from 0 too", async () => {
    const random = new Random(5);
    const [rows, n, epsilon] = [7, 93, 1e-5];
    const [x, gain, bias] = [normal(random, [rows, n]), normal(random, [n]), normal(random, [n])];
    for (const offset of [0, 100]) {
      const moved = { ...x, data: x.data.map((value) => value + offset) };
      const [actual, unbiased] = await compute([moved, gain, bias], (g, [a, b, c]) => [
        ops.layerNorm(g, a!, b!, c!, { epsilon }),
        ops.layerNorm(g, a!, b!, undefined, { epsilon }),
      ]);
      const expected = [...moved.data].map((value, i) => {
        const row = [...moved.data.subarray(Math.floor(i / n) * n, (Math.floor(i / n) + 1) * n)];
        const mean = row.reduce((sum, each) => sum + each, 0) / n;
        const variance = row.reduce((sum, each) => sum + (each - mean) ** 2, 0) / n;
        return ((value - mean) / Math.sqrt(variance + epsilon)) * gain.data[i % n]!;
      });
      const tolerance = offset === 0 ? 1e-5 : 1e-4;
      expect(furthest(unbiased!, expected)).toBeLessThan(tolerance);
      expect(
        furthest(
          actual!,
          expected.map((value, i) => value + bias.data[i % n]!),
        ),
      ).toBeLessThan(tolerance);
    }
  });

  it("a gain or bias of another size is refused by name", async () => {
    const random = new Random(5);
    const inputs = [normal(random, [2, 4]), normal(random, [4]), normal(random, [3])];
    const attempt = compute(inputs, (g, [x, gain, bias]) => [ops.layerNorm(g, x!, gain!, bias, { epsilon: 1e-5 })]);
    await expect(attempt).rejects.toThrow(/x2 f32 \[3\] is not a bias for the rows of x0/);
  });
});
