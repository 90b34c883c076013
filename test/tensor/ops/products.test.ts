import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../../../src/system/random.js";
import { ops } from "../../../src/tensor/index.js";
import { backends, furthest, normal } from "./compute.js";

const { each, free } = backends();
afterAll(free);

const [ROWS, M, N] = [160, 19, 11];

describe.each(each)("on %s", (_, compute) => {
  it.each(["f32", "bf16"] as const)("products are added to a sum in f32, of numbers in %s", async (computeType) => {
    const random = new Random(2);
    const [sum, a, b] = [normal(random, [M, N]), normal(random, [ROWS, M]), normal(random, [ROWS, N])];
    const [added] = await compute([sum, a, b], (g, [s, x, y]) => [ops.addProducts(g, s!, x!, y!)], { computeType });
    const unit = computeType === "f32" ? 2 ** -24 : 2 ** -9;
    sum.data.forEach((before, i) => {
      const products = Array.from(
        { length: ROWS },
        (_, row) => a.data[row * M + Math.floor(i / N)]! * b.data[row * N + (i % N)]!,
      );
      const expected = products.reduce((total, value) => total + value, before);
      const size = products.reduce((total, value) => total + Math.abs(value), 0);
      // both factors are rounded, and in f32 the sum is, again and again
      expect(Math.abs(added![i]! - expected)).toBeLessThan(2.1 * unit * size + 1e-4);
    });
  });

  it.each([1, 3, 23, 24, 25, 100, 211])(
    "of one matrix, the lower triangle of %i rows is added to a sum",
    async (size) => {
      const random = new Random(size);
      const [sum, a] = [normal(random, [size, size]), normal(random, [ROWS, size])];
      const lower = (of: Float32Array) => of.filter((_, i) => i % size <= Math.floor(i / size));
      const [added] = await compute([sum, a], (g, [s, x]) => [ops.addGram(g, s!, x!)]);
      const [whole] = await compute([sum, a], (g, [s, x]) => [ops.addProducts(g, s!, x!, x!)]);
      expect(lower(added!)).toEqual(lower(whole!));
    },
  );

  it.each([25, 300, 1100])("the lower triangle of %i rows of whole numbers is exact in bf16", async (size) => {
    const random = new Random(size);
    const rows = 37;
    const a = {
      shape: [rows, size],
      data: Float32Array.from({ length: rows * size }, () => Math.round(12 * random.uniform() - 6)),
    };
    const sum = { shape: [size, size], data: Float32Array.from({ length: size * size }, (_, i) => i % 7) };
    const [added] = await compute([sum, a], (g, [s, x]) => [ops.addGram(g, s!, x!)], { computeType: "bf16" });
    for (let i = 0; i < size; i++)
      for (let j = 0; j <= i; j++) {
        let total = sum.data[i * size + j]!;
        for (let row = 0; row < rows; row++) total += a.data[row * size + i]! * a.data[row * size + j]!;
        if (added![i * size + j] !== total) expect([i, j, added![i * size + j]]).toEqual([i, j, total]);
      }
  });

  it.each([
    [1, 1, 1],
    [31, 33, 17],
    [5, 70, 1027],
    [530, 545, 66],
  ])("a product in bf16 of small whole numbers is exact, in any layout: %i x %i, sums of %i", async (m, n, k) => {
    const random = new Random(4);
    const whole = (shape: readonly number[]) => ({
      shape,
      data: Float32Array.from({ length: shape[0]! * shape[1]! }, () => Math.round(12 * random.uniform() - 6)),
    });
    const [a, b] = [whole([m, k]), whole([n, k])];
    const swapped = ({ shape: [rows = 0, columns = 0], data }: typeof a) => ({
      shape: [columns, rows],
      data: data.map((_unused, i) => data[(i % rows) * columns + Math.floor(i / rows)]!),
    });
    const expected = new Float64Array(m * n);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let total = 0;
        for (let t = 0; t < k; t++) total += a.data[i * k + t]! * b.data[j * k + t]!;
        expected[i * n + j] = total;
      }
    const [along] = await compute([a, b], (g, [x, y]) => [ops.matmul(g, x!, y!)], { computeType: "bf16" });
    const [across] = await compute([a, swapped(b)], (g, [x, y]) => [ops.linear(g, x!, y!, { transposed: true })], {
      computeType: "bf16",
    });
    const [both] = await compute(
      [swapped(a), b],
      (g, [x, y]) => [ops.matmul(g, ops.permute(g, x!, { order: [1, 0] }), y!)],
      { computeType: "bf16" },
    );
    for (const product of [along, across, both]) expect(furthest(product!, expected)).toBe(0);
  });

  it("a product is exact to f32 where f32 is asked for, and within the rounding of its factors where bf16 is", async () => {
    const random = new Random(3);
    const [a, b] = [normal(random, [M, ROWS]), normal(random, [N, ROWS])];
    const product = (of: (value: number) => number) =>
      Array.from({ length: M * N }, (_unused, i) => {
        const [row, column] = [Math.floor(i / N), i % N];
        let total = 0;
        for (let k = 0; k < ROWS; k++) total += of(a.data[row * ROWS + k]!) * of(b.data[column * ROWS + k]!);
        return total;
      });
    const exact = product((value) => value);
    const bounds = product(Math.abs); // each rounding of a factor changes its product by at most 2^-9 of it
    const multiply = async (computeType: "f32" | "bf16") =>
      (await compute([a, b], (g, [x, y]) => [ops.matmul(g, x!, y!)], { computeType }))[0]!;
    expect(furthest(await multiply("f32"), exact)).toBeLessThan(1e-4);
    const rounded = await multiply("bf16");
    for (const [i, value] of rounded.entries()) expect(Math.abs(value - exact[i]!)).toBeLessThan(bounds[i]! / 250);
  });
});
