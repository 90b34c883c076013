import { afterAll, describe, expect, it } from "vitest";
import { Backend } from "../../src/ggml/index.js";
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
import { xielu } from "./xielu.js";

/** An op under test: its differentiable inputs' shapes, and how it is applied to them. */
interface Case {
  readonly shapes: readonly Shape[];
  readonly apply: (g: Graph, inputs: readonly Tensor[]) => Tensor;
  /** Inputs are drawn from [low, low + 2). */
  readonly low?: number;
  /** Computes again for the gradient what is so marked. */
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

const attentionShapes: readonly Shape[] = [
  [2, 3, 4, 2],
  [2, 3, 2, 2],
  [2, 3, 2, 2],
];

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
  broadcastTo: binary(ops.broadcastTo, [
    [3, 1],
    [3, 4],
  ]),
  sumTo: binary(ops.sumTo, [
    [3, 4],
    [1, 4],
  ]),
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
  rope: {
    shapes: [[2, 3, 2, 6]],
    apply: (g, [x]) =>
      ops.rope(g, x!, {
        rotaryDim: 4,
        theta: 100,
        attentionFactor: 1.25,
        factors: Float32Array.of(1, 2),
        positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
      }),
  },
  "rope, interleaved": {
    shapes: [[2, 3, 2, 6]],
    apply: (g, [x]) =>
      ops.rope(g, x!, {
        rotaryDim: 4,
        theta: 100,
        attentionFactor: 1.25,
        interleaved: true,
        factors: Float32Array.of(1, 2),
        positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
      }),
  },
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

describe.each(testBackends)("on %s", (_, options) => {
  const backend = Backend.open({ ...options, threads: 2 });
  // Debian's software Vulkan driver corrupts memory when buffers are freed between computations, so they are freed last.
  const finished: { free(): void }[] = [];
  afterAll(() => {
    for (const item of finished) item.free();
    backend.free();
  });

  it.each(Object.entries(CASES))("the gradient of %s is that of finite differences", async (name, test) => {
    const random = new Random(7);
    const store = new TensorStore(backend, test.shapes.length);
    const inputs = test.shapes.map((shape, i) => store.add(`x${i}`, shape, "f32", { trainable: true }));
    store.allocate();
    const values = test.shapes.map((shape) =>
      Float32Array.from({ length: elementCount(shape) }, () => (test.low ?? -1) + 2 * random.uniform()),
    );
    for (const [i, input] of inputs.entries()) store.write(input, values[i]!);

    const g = new Graph(backend, { recompute: test.recompute ?? false });
    const result = test.apply(g, inputs);
    const weights = Float32Array.from({ length: elementCount(result.shape) }, () => random.normal());
    const loss = g.output(ops.sum(g, ops.mul(g, result, g.constant("weights", "f32", result.shape, weights))));
    // shape-only arguments have no gradient
    const differentiable = inputs.filter((_, i) => !((name === "broadcastTo" || name === "sumTo") && i === 1));
    const derived = gradients(g, loss, differentiable).map((gradient) => g.output(gradient));
    await g.run();
    const analytic = derived.map((gradient) => g.read(gradient));

    const step = 1 / 64;
    for (const [which, input] of differentiable.entries()) {
      const at = values[which]!;
      const largest = Math.max(...analytic[which]!.map(Math.abs));
      for (let i = 0; i < at.length; i++) {
        const lossAt = async (offset: number) => {
          const moved = at.slice();
          moved[i]! += offset;
          store.write(input, moved);
          await g.run();
          return g.read(loss)[0]!;
        };
        // Richardson extrapolation of central differences: the error is of fourth order in the step
        const coarse = ((await lossAt(2 * step)) - (await lossAt(-2 * step))) / (4 * step);
        const fine = ((await lossAt(step)) - (await lossAt(-step))) / (2 * step);
        const numeric = (4 * fine - coarse) / 3;
        expect(Math.abs(analytic[which]![i]! - numeric), `d/dx${which}[${i}]`).toBeLessThan(2e-3 + 4e-3 * largest);
      }
      store.write(input, at);
    }
    finished.push(g, store);
  });
});
