import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../../../src/system/random.js";
import { type Graph, ops } from "../../../src/tensor/index.js";
import { backends, furthest, normal } from "./compute.js";

const [batch, seq, heads, headDim, rotaryDim] = [2, 9, 3, 14, 10] as const;
const theta = 1000;
const factors = Float32Array.from({ length: rotaryDim / 2 }, (_, i) => 1 + i / 2);
const places = Int32Array.of(3, 0, 1, 2, 8, 8, 4, 5, 6);

const { each, free } = backends();
afterAll(free);

describe.each(each)("on %s", (_, compute) => {
  const x = normal(new Random(2), [batch, seq, heads, headDim]);
  const positionsIn = (g: Graph, placed: boolean) => (placed ? g.constant("places", "i32", [seq], places) : undefined);
  const placeOf = (i: number) => Math.floor(i / (heads * headDim)) % seq;

  it.each([
    ["i and i + half", false, (i: number) => [i, i + rotaryDim / 2]],
    ["2i and 2i + 1", true, (i: number) => [2 * i, 2 * i + 1]],
  ] as const)("channels %s turn as a complex number; the others pass through", async (_, interleaved, pair) => {
    for (const placed of [false, true]) {
      const [actual] = await compute([x], (g, [a]) => [
        ops.rope(g, a!, {
          rotaryDim,
          theta,
          factors,
          attentionFactor: 1.5,
          interleaved,
          positions: positionsIn(g, placed),
        }),
      ]);
      const expected = Float64Array.from(x.data);
      for (let head = 0; head < batch * seq * heads; head++) {
        const place = Math.floor(head / heads) % seq;
        const position = placed ? places[place]! : place;
        for (let i = 0; i < rotaryDim / 2; i++) {
          const angle = (position * theta ** ((-2 * i) / rotaryDim)) / factors[i]!;
          const [real, imaginary] = pair(i).map((channel) => head * headDim + channel) as [number, number];
          const [a, b] = [x.data[real]!, x.data[imaginary]!];
          expected[real] = 1.5 * (a * Math.cos(angle) - b * Math.sin(angle));
          expected[imaginary] = 1.5 * (a * Math.sin(angle) + b * Math.cos(angle));
        }
      }
      expect(furthest(actual!, expected)).toBeLessThan(1e-5);
    }
  });

  it("each position is multiplied by its factor", async () => {
    const byPosition = Float32Array.from({ length: 20 }, (_, p) => 1 + 0.1 * Math.log(1 + Math.floor(p / 4)));
    const [inOrder, placed] = await compute([x], (g, [a]) => [
      ops.scaleByPosition(g, a!, { factors: byPosition }),
      ops.scaleByPosition(g, a!, { factors: byPosition, positions: positionsIn(g, true) }),
    ]);
    const expected = (position: (place: number) => number) =>
      [...x.data].map((value, i) => value * byPosition[position(placeOf(i))]!);
    expect(
      furthest(
        inOrder!,
        expected((place) => place),
        1e-6,
      ),
    ).toBe(0);
    expect(
      furthest(
        placed!,
        expected((place) => places[place]!),
        1e-6,
      ),
    ).toBe(0);
  });

  it("fewer factors than positions are refused", async () => {
    const attempt = compute([x], (g, [a]) => [ops.scaleByPosition(g, a!, { factors: new Float32Array(seq - 1) })]);
    await expect(attempt).rejects.toThrow(/by 8 factors at 9 positions does not fit/);
  });
});
