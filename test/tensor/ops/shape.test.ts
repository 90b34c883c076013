import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../../../src/system/random.js";
import { ops } from "../../../src/tensor/index.js";
import { backends, furthest, normal } from "./compute.js";

const { each, free } = backends();
afterAll(free);

describe.each(each)("on %s", (_, compute) => {
  it.each([[[5, 2, 8]], [[15]], [Array.from({ length: 15 }, () => 1)]])(
    "the last axis is split into %j, and concatenated again",
    async (sizes) => {
      const x = normal(new Random(4), [3, 2, 15]);
      const [whole, ...parts] = await compute([x], (g, [a]) => {
        const split = ops.splitLast(g, a!, sizes);
        // a step of its own, because an input cannot be an output
        return [ops.concatLast(g, split), ...split].map((part) => ops.scale(g, part, { factor: 1 }));
      });
      expect([...whole!]).toEqual([...x.data]);
      let from = 0;
      sizes.forEach((size, which) => {
        const expected = [...x.data].filter((_, i) => i % 15 >= from && i % 15 < from + size);
        expect([...parts[which]!]).toEqual(expected);
        from += size;
      });
    },
  );

  it.each([[[5, 2]], [[]], [[16, -1]], [[7.5, 7.5]], [[15, 0]]])("a split into %j is refused", async (sizes) => {
    const attempt = compute([normal(new Random(4), [2, 15])], (g, [a]) => ops.splitLast(g, a!, sizes));
    await expect(attempt).rejects.toThrow(/the last axis of x0 f32 \[2, 15\] cannot be split/);
  });

  it("a linear layer reads a matrix stored as [in, out]", async () => {
    const random = new Random(6);
    const [rows, inputs, outputs] = [37, 70, 45];
    const [x, w] = [normal(random, [rows, inputs]), normal(random, [inputs, outputs])];
    const [actual] = await compute([x, w], (g, [a, b]) => [ops.linear(g, a!, b!, { transposed: true })]);
    const expected = Array.from({ length: rows * outputs }, (_, i) => {
      let sum = 0;
      for (let c = 0; c < inputs; c++)
        sum += x.data[Math.floor(i / outputs) * inputs + c]! * w.data[c * outputs + (i % outputs)]!;
      return sum;
    });
    expect(furthest(actual!, expected)).toBeLessThan(1e-4);
    const wrong = compute([x, w], (g, [a]) => [ops.linear(g, a!, a!, { transposed: true })]);
    await expect(wrong).rejects.toThrow(/the inner axes must agree/);
  });
});
