import { afterAll, describe, expect, it } from "vitest";
import { xielu, xieluConstants } from "../../../src/check/op-cases.js";
import { ShapeError } from "../../../src/system/errors.js";
import { type Graph, ops, type Tensor } from "../../../src/tensor/index.js";
import { backends, furthest } from "./compute.js";

/** The error function by its Taylor series, and the complementary one by its continued fraction where that converges faster. */
function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x);
  if (x > 2.5) {
    let fraction = 0;
    for (let k = 200; k > 0; k--) fraction = k / 2 / (x + fraction);
    return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
  }
  let sum = 0;
  let term = x;
  for (let n = 0; n < 80; n++) {
    sum += term / (2 * n + 1);
    term *= (-x * x) / (n + 1);
  }
  return 1 - (2 / Math.sqrt(Math.PI)) * sum;
}

const geluTanh = (x: number) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const geluErf = (x: number) => (x / 2) * erfc(-x / Math.SQRT2);

interface Case {
  readonly apply: (g: Graph, x: Tensor) => Tensor;
  readonly exact: (x: number) => number;
  /** How far off a result may be beyond 1e-5 of itself, without kernels. */
  readonly absolute?: number;
  /** Whether it has no kernel. */
  readonly composed?: true;
}

const CASES: Record<string, Case> = {
  relu: { apply: (g, x) => ops.relu(g, x), exact: (x) => Math.max(x, 0) },
  sigmoid: { apply: (g, x) => ops.sigmoid(g, x), exact: (x) => 1 / (1 + Math.exp(-x)) },
  softplus: {
    apply: (g, x) => ops.softplus(g, x),
    exact: (x) => Math.log1p(Math.exp(x)),
    absolute: 1e-7,
    composed: true,
  },
  tanh: { apply: (g, x) => ops.tanh(g, x), exact: Math.tanh, absolute: 1e-7 },
  "a soft cap": {
    apply: (g, x) => ops.softCap(g, x, { cap: 5 }),
    exact: (x) => 5 * Math.tanh(x / 5),
    absolute: 5e-7,
  },
  "gelu by tanh": { apply: (g, x) => ops.gelu(g, x, { approximation: "tanh" }), exact: geluTanh },
  "gelu by erf": { apply: (g, x) => ops.gelu(g, x, { approximation: "none" }), exact: geluErf, absolute: 5e-7 },
  "geglu by tanh": {
    apply: (g, x) => ops.geglu(g, x, ops.scale(g, x, { factor: 2 }), { approximation: "tanh" }),
    exact: (x) => 2 * x * geluTanh(x),
  },
  "geglu by erf": {
    apply: (g, x) => ops.geglu(g, x, ops.scale(g, x, { factor: 2 }), { approximation: "none" }),
    exact: (x) => 2 * x * geluErf(x),
    absolute: 5e-6,
  },
};

/** From -9 to 9 and near 0, where formulas lose digits. f32. */
const POINTS = Float32Array.from([
  ...Array.from({ length: 361 }, (_, i) => (i - 180) / 20),
  1e-7,
  -1e-7,
  1e-5,
  -1e-5,
  1e-3,
  -1e-3,
  0.01,
  -0.01,
]);

/** Below this exponentials have fewer digits, or are cut off. */
const SMALLEST = 1e-25;

const { each, free } = backends();
afterAll(free);

describe.each(each)("on %s", (name, compute) => {
  const on = (...values: number[]) => [{ shape: [values.length], data: Float32Array.from(values) }];

  it.each(Object.entries(CASES))("%s is its formula", async (_, { apply, exact, absolute = 0, composed }) => {
    const [actual] = await compute(on(...POINTS), (g, [x]) => [apply(g, x!)]);
    const slack = name.includes("kernels") && !composed ? 0 : absolute;
    expect(furthest(actual!, [...POINTS].map(exact), 1e-5)).toBeLessThanOrEqual(slack + SMALLEST);
  });

  it("xIELU is its formula, around 0 too", async () => {
    const [p, n, beta, epsilon] = [0.3, -0.4, 0.5, -1e-6];
    const points = Float32Array.from([...POINTS, 0, -0, -1e-6, -5e-7, -2e-6]);
    const [actual] = await compute(
      [{ shape: [points.length], data: points }, ...on(p).concat(on(n))],
      (g, [x, alphaPositive, alphaNegative]) => [
        ops.xielu(g, x!, {
          alphaPositive: alphaPositive!,
          alphaNegative: alphaNegative!,
          ...xieluConstants(g, beta, epsilon),
        }),
      ],
    );
    const softplus = (x: number) => Math.log1p(Math.exp(x));
    const expected = [...points].map((x) =>
      x > 0 ? softplus(p) * x * x + beta * x : (Math.expm1(Math.min(x, epsilon)) - x) * (beta + softplus(n)) + beta * x,
    );
    expect(furthest(actual!, expected, 1e-5)).toBeLessThanOrEqual(3e-7);
  });

  it("large numbers do not overflow, and what is not a number stays so", async () => {
    const [capped, smooth, gate, nan] = await compute(on(1e30, -1e30, 300, -300), (g, [x]) => [
      ops.softCap(g, x!, { cap: 30 }),
      ops.softplus(g, x!),
      ops.gelu(g, x!, { approximation: "none" }),
      ops.softCap(g, ops.log(g, ops.scale(g, x!, { factor: 0, bias: -1 })), { cap: 30 }),
    ]);
    expect([...capped!]).toEqual([30, -30, 30, -30]);
    expect([...smooth!]).toEqual([Math.fround(1e30), 0, 300, 0]);
    expect([...gate!].map((x) => x + 0)).toEqual([Math.fround(1e30), 0, 300, 0]);
    expect([...nan!].every(Number.isNaN)).toBe(true);
  });

  it("what cannot be is refused by name", async () => {
    await expect(compute(on(1), (g, [x]) => [ops.softCap(g, x!, { cap: 0 })])).rejects.toThrow(ShapeError);
    await expect(compute([...on(1, 2), ...on(1, 2)], (g, [x, a]) => [xielu(g, x!, a!, a!)])).rejects.toThrow(
      /x1 f32 \[2\] is not a parameter of xIELU/,
    );
  });
});
