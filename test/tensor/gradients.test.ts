import { describe, expect, it } from "vitest";
import type { Backend } from "../../src/ggml/index.js";
import { Random } from "../../src/system/random.js";
import {
  elementCount,
  Graph,
  gradients,
  ops,
  recomputed,
  type Shape,
  type Tensor,
  TensorStore,
} from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";
import { xielu } from "./xielu.js";

type Opened = ReturnType<typeof openBackend>;

/** An op under test: its differentiable inputs' shapes, and how it is applied to them. */
interface Case {
  readonly shapes: readonly Shape[];
  readonly apply: (g: Graph, inputs: readonly Tensor[]) => Tensor;
  /** Inputs are drawn from [low, low + 2). */
  readonly low?: number;
  /** Whether gradients compute again what is inside of `recomputed`. */
  readonly recompute?: boolean;
}

const unary = (apply: (g: Graph, x: Tensor) => Tensor, low = -1): Case => ({
  shapes: [[2, 3, 4]],
  apply: (g, [x]) => apply(g, x!),
  low,
});
const binary = (apply: (g: Graph, a: Tensor, b: Tensor) => Tensor, shapes: readonly Shape[], low = -1): Case => ({
  shapes,
  apply: (g, [a, b]) => apply(g, a!, b!),
  low,
});
const ids = (g: Graph, ...values: number[]) =>
  g.constant(`ids ${values}`, "i32", [values.length], Int32Array.from(values));
const causalMask = (g: Graph, size: number) =>
  g.constant(
    "mask",
    "f32",
    [size, size],
    Float32Array.from({ length: size * size }, (_, i) => (i % size > Math.floor(i / size) ? -Infinity : 0)),
  );

const shapeOnly = (g: Graph, shape: Shape) => g.constant("like", "f32", shape, new Float32Array(elementCount(shape)));

const attentionShapes: readonly Shape[] = [
  [2, 3, 4, 2],
  [2, 3, 2, 2],
  [2, 3, 2, 2],
];

const rope = (interleaved: boolean): Case => ({
  shapes: [[2, 3, 2, 6]],
  apply: (g, [x]) =>
    ops.rope(g, x!, {
      rotaryDim: 4,
      theta: 100,
      attentionFactor: 1.25,
      interleaved,
      factors: Float32Array.of(1, 2),
      positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
    }),
});

const CASES: Record<string, Case> = {
  add: binary(ops.add, [
    [2, 3, 4],
    [2, 3, 4],
  ]),
  "add, broadcast": binary(ops.add, [[2, 3, 4], [4]]),
  firstColumns: { shapes: [[3, 7]], apply: (g, [x]) => ops.firstColumns(g, x!, 5) },
  sub: binary(ops.sub, [
    [3, 4],
    [1, 4],
  ]),
  mul: binary(ops.mul, [
    [2, 3, 4],
    [2, 3, 4],
  ]),
  "mul, broadcast over rows": binary(ops.mul, [[2, 3, 4], [4]]),
  "mul, broadcast along rows": binary(ops.mul, [
    [3, 4],
    [3, 1],
  ]),
  "mul, by itself": unary((g, x) => ops.mul(g, x, x)),
  div: binary(
    ops.div,
    [
      [3, 4],
      [3, 4],
    ],
    1,
  ),
  "div, broadcast": binary(
    ops.div,
    [
      [3, 4],
      [3, 1],
    ],
    1,
  ),
  scale: unary((g, x) => ops.scale(g, x, { factor: -2.5, bias: 0.5 })),
  square: unary((g, x) => ops.square(g, x)),
  sqrt: unary((g, x) => ops.sqrt(g, x), 0.5),
  log: unary((g, x) => ops.log(g, x), 0.5),
  exp: unary((g, x) => ops.exp(g, x)),
  abs: unary((g, x) => ops.abs(g, x), 0.1),
  sum: unary((g, x) => ops.sum(g, x)),
  mean: unary((g, x) => ops.mean(g, x)),
  sumLast: unary((g, x) => ops.sumLast(g, x)),
  sumRows: unary((g, x) => ops.sumRows(g, x)),
  broadcastTo: { shapes: [[3, 1]], apply: (g, [x]) => ops.broadcastTo(g, x!, shapeOnly(g, [3, 4])) },
  sumTo: { shapes: [[3, 4]], apply: (g, [x]) => ops.sumTo(g, x!, shapeOnly(g, [1, 4])) },
  reshape: unary((g, x) => ops.reshape(g, x, { to: [4, 6] })),
  permute: unary((g, x) => ops.permute(g, x, { order: [2, 0, 1] })),
  cast: unary((g, x) => ops.cast(g, x, { to: "f32" })),
  matmul: binary(ops.matmul, [
    [3, 5],
    [4, 5],
  ]),
  "matmul, batched": binary(ops.matmul, [
    [2, 2, 3, 5],
    [2, 2, 4, 5],
  ]),
  "matmul, by itself": unary((g, x) => ops.matmul(g, x, x)),
  linear: binary(ops.linear, [
    [2, 3, 4],
    [5, 4],
  ]),
  rmsNorm: unary((g, x) => ops.rmsNorm(g, x, { epsilon: 1e-3 })),
  rmsNormGain: binary((g, x, gain) => ops.rmsNormGain(g, x, gain, { epsilon: 1e-3 }), [[21, 19], [19]]),
  silu: unary((g, x) => ops.silu(g, x)),
  swiglu: binary(ops.swiglu, [
    [3, 7],
    [3, 7],
  ]),
  layerNorm: {
    shapes: [[21, 19], [19], [19]],
    apply: (g, [x, gain, bias]) => ops.layerNorm(g, x!, gain!, bias, { epsilon: 1e-3 }),
  },
  "layerNorm without bias": binary(
    (g, x, gain) => ops.layerNorm(g, x, gain, undefined, { epsilon: 1e-3 }),
    [[3, 40], [40]],
  ),
  relu: unary((g, x) => ops.relu(g, x), 0.1),
  "relu of negative numbers": unary((g, x) => ops.relu(g, x), -2.1),
  sigmoid: unary((g, x) => ops.sigmoid(g, x)),
  tanh: unary((g, x) => ops.tanh(g, x)),
  softCap: unary((g, x) => ops.softCap(g, x, { cap: 0.8 })),
  softplus: unary((g, x) => ops.softplus(g, x)),
  "gelu by tanh": unary((g, x) => ops.gelu(g, x, { approximation: "tanh" })),
  "gelu by erf": unary((g, x) => ops.gelu(g, x, { approximation: "none" })),
  "geglu by tanh": binary(
    (g, gate, up) => ops.geglu(g, gate, up, { approximation: "tanh" }),
    [
      [3, 7],
      [3, 7],
    ],
  ),
  "geglu by erf": binary(
    (g, gate, up) => ops.geglu(g, gate, up, { approximation: "none" }),
    [
      [3, 7],
      [3, 7],
    ],
  ),
  "xielu of positive numbers": {
    shapes: [[2, 5], [1], [1]],
    apply: (g, [x, p, n]) => xielu(g, x!, p!, n!),
    low: 0.1,
  },
  "xielu of negative numbers": {
    shapes: [[2, 5], [1], [1]],
    apply: (g, [x, p, n]) => xielu(g, x!, p!, n!),
    low: -2.1,
  },
  softmax: unary((g, x) => ops.softmax(g, x, { scale: 1.5 })),
  maskedSoftmax: { shapes: [[2, 3, 3]], apply: (g, [x]) => ops.maskedSoftmax(g, x!, causalMask(g, 3), { scale: 0.7 }) },
  logSoftmax: unary((g, x) => ops.logSoftmax(g, x, { scale: 1 })),
  "logSoftmax, scaled": unary((g, x) => ops.logSoftmax(g, x, { scale: 0.5 })),
  rope: rope(false),
  "rope, interleaved": rope(true),
  scaleByPosition: {
    shapes: [[2, 3, 2, 4]],
    apply: (g, [x]) =>
      ops.scaleByPosition(g, x!, {
        factors: Float32Array.of(1, -2, 0.5),
        positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
      }),
  },
  "splitLast, each part used": unary((g, x) => {
    const [first, second, third] = ops.splitLast(g, x, [1, 2, 1]);
    return ops.concatLast(g, [ops.mul(g, second!, first!), ops.exp(g, third!), second!]);
  }),
  "splitLast, a part unused": unary((g, x) => ops.square(g, ops.splitLast(g, x, [1, 2, 1])[1]!)),
  "splitLast, computed again": {
    shapes: [[2, 3, 4]],
    apply: (g, [x]) =>
      recomputed(g, x!, (y) => {
        const [first, second] = ops.splitLast(g, y, [2, 2]);
        return ops.mul(g, second!, ops.exp(g, first!));
      }),
    recompute: true,
  },
  concatLast: binary(
    (g, a, b) => ops.concatLast(g, [a, b, a]),
    [
      [2, 3, 4],
      [2, 3, 1],
    ],
  ),
  "linear, transposed": binary(
    (g, x, w) => ops.linear(g, x, w, { transposed: true }),
    [
      [2, 3, 4],
      [4, 5],
    ],
  ),
  embedding: { shapes: [[5, 3]], apply: (g, [table]) => ops.embedding(g, table!, ids(g, 4, 0, 4, 2)) },
  gather: { shapes: [[3, 4]], apply: (g, [x]) => ops.gather(g, x!, ids(g, 1, 11, 1, 6)) },
  crossEntropy: { shapes: [[3, 21]], apply: (g, [x]) => ops.crossEntropy(g, x!, ids(g, 4, 21, 62)) },
  attention: {
    shapes: attentionShapes,
    apply: (g, [q, k, v]) => ops.attention(g, q!, k!, v!, { scale: 0.7 }),
  },
  "attention with soft-capped scores in a window": {
    shapes: attentionShapes,
    apply: (g, [q, k, v]) => ops.attention(g, q!, k!, v!, { scale: 0.7, softCap: 0.9, window: 2 }),
  },
  "attention with sinks": {
    shapes: [...attentionShapes, [4]],
    apply: (g, [q, k, v, sinks]) => ops.attention(g, q!, k!, v!, { scale: 0.7, sinks }),
  },
  "attention with sinks and soft-capped scores": {
    shapes: [...attentionShapes, [4]],
    apply: (g, [q, k, v, sinks]) => ops.attention(g, q!, k!, v!, { scale: 0.7, sinks, softCap: 0.9, window: 2 }),
  },
};

type Values = readonly Float32Array[];

/** The inputs of a case: the same numbers on every backend. */
function inputsOf({ shapes, low = -1 }: Case): Values {
  const random = new Random(7);
  return shapes.map((shape) => Float32Array.from({ length: elementCount(shape) }, () => low + 2 * random.uniform()));
}

/** A graph of a case's result and of a loss, which is a random weighting of the result. */
function build(backend: Backend, test: Case) {
  const store = new TensorStore(backend, test.shapes.length);
  const inputs = test.shapes.map((shape, i) => store.add(`x${i}`, shape, "f32", { trainable: true }));
  store.allocate();
  const values = inputsOf(test);
  for (const [i, input] of inputs.entries()) store.write(input, values[i]!);
  const g = new Graph(backend, { recompute: test.recompute ?? false });
  const result = test.apply(g, inputs);
  const random = new Random(8);
  const weights = Float32Array.from({ length: elementCount(result.shape) }, () => random.normal());
  const loss = ops.sum(g, ops.mul(g, result, g.constant("weights", "f32", result.shape, weights)));
  return { g, store, inputs, result, loss };
}

/** The result of a case, and the gradients of its inputs. */
async function resultAndGradients({ backend, freeLater }: Opened, test: Case): Promise<Values> {
  const { g, store, inputs, result, loss } = build(backend, test);
  freeLater(g, store);
  const outputs = [result, ...gradients(g, loss, inputs)].map((tensor) =>
    g.output(ops.scale(g, tensor, { factor: 1 })),
  );
  await g.run();
  return outputs.map((output) => g.read(output));
}

/** Richardson's extrapolation of central differences: the error is of fourth order in the step. */
async function finiteDifferences({ backend, freeLater }: Opened, test: Case): Promise<Values> {
  const { g, store, inputs, loss } = build(backend, test);
  freeLater(g, store);
  g.output(loss);
  const step = 1 / 64;
  const values = inputsOf(test);
  const differences: Float32Array[] = [];
  for (const [which, input] of inputs.entries()) {
    const lossAt = async (i: number, offset: number) => {
      const moved = values[which]!.slice();
      moved[i]! += offset;
      store.write(input, moved);
      await g.run();
      return g.read(loss)[0]!;
    };
    const own = new Float32Array(values[which]!.length);
    for (const i of own.keys()) {
      const coarse = ((await lossAt(i, 2 * step)) - (await lossAt(i, -2 * step))) / (4 * step);
      const fine = ((await lossAt(i, step)) - (await lossAt(i, -step))) / (2 * step);
      own[i] = (4 * fine - coarse) / 3;
    }
    store.write(input, values[which]!);
    differences.push(own);
  }
  return differences;
}

const largestOf = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** @param tolerance for differences: absolute, and relative to the largest expected number */
function expectClose(actual: Values, expected: Values, [absolute, relative]: readonly [number, number]): void {
  expect(actual.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
  for (const [which, values] of actual.entries()) {
    const limit = absolute + relative * largestOf(expected[which]!);
    for (const [i, value] of values.entries())
      expect(Math.abs(value - expected[which]![i]!), `tensor ${which}, element ${i}`).toBeLessThan(limit);
  }
}

const [[referenceName, referenceOptions], ...otherBackends] = testBackends as [
  (typeof testBackends)[0],
  ...typeof testBackends,
];
const reference = openBackend({ ...referenceOptions, threads: 1 });
const onReference = new Map<string, Promise<Values>>();

function referenceOf(name: string): Promise<Values> {
  const known = onReference.get(name) ?? resultAndGradients(reference, CASES[name]!);
  onReference.set(name, known);
  return known;
}

// differences are taken on one backend, where they cost least; on the others results and gradients must be equal to that one's
describe(`on ${referenceName}`, () => {
  it.each(Object.keys(CASES))("the gradient of %s is that of finite differences", async (name) => {
    const [, ...analytic] = await referenceOf(name);
    expectClose(await finiteDifferences(reference, CASES[name]!), analytic, [2e-3, 4e-3]);
  });
});

describe.each(otherBackends)("on %s", (_, options) => {
  const opened = openBackend({ ...options, threads: 2 });

  it.each(Object.keys(CASES))(`the result and the gradient of %s are those on ${referenceName}`, async (name) => {
    expectClose(await resultAndGradients(opened, CASES[name]!), await referenceOf(name), [1e-6, 1e-4]);
  });
});
