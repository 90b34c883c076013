import type { Backend } from "../ggml/device.js";
import { elementAt } from "../system/arrays.js";
import { Random } from "../system/random.js";
import {
  elementCount,
  Graph,
  gradients,
  ops,
  recomputed,
  type Shape,
  type Tensor,
  TensorStore,
} from "../tensor/index.js";

/** An op to be checked: its differentiable inputs' shapes, and how it is applied to them. */
export interface OpCase {
  readonly shapes: readonly Shape[];
  readonly apply: (g: Graph, ...inputs: Tensor[]) => Tensor;
  /** Inputs are drawn from [low, low + 2). */
  readonly low?: number;
  /** Whether gradients compute again what is inside of `recomputed`. */
  readonly recompute?: boolean;
}

const unary = (apply: (g: Graph, x: Tensor) => Tensor, low = -1): OpCase => ({
  shapes: [[2, 3, 4]],
  apply,
  low,
});
const binary = (apply: (g: Graph, a: Tensor, b: Tensor) => Tensor, shapes: readonly Shape[], low = -1): OpCase => ({
  shapes,
  apply,
  low,
});
/** Ids as a constant. */
export const ids = (g: Graph, ...values: number[]) =>
  g.constant(`ids ${values}`, "i32", [values.length], Int32Array.from(values));
const causalMask = (g: Graph, size: number) =>
  g.constant(
    "mask",
    "f32",
    [size, size],
    Float32Array.from({ length: size * size }, (_, i) => (i % size > Math.floor(i / size) ? -Infinity : 0)),
  );

const shapeOnly = (g: Graph, shape: Shape) => g.constant("like", "f32", shape, new Float32Array(elementCount(shape)));

/** Three parts of a tensor's last axis. */
const parts = (g: Graph, x: Tensor, sizes: readonly [number, number, number]) =>
  ops.splitLast(g, x, sizes) as readonly Tensor[] as readonly [Tensor, Tensor, Tensor];

/** xIELU with its two constants, which models store as tensors. */
export const xielu = (g: Graph, x: Tensor, alphaPositive: Tensor, alphaNegative: Tensor): Tensor =>
  ops.xielu(g, x, { alphaPositive, alphaNegative, ...xieluConstants(g, 0.5, -1e-6) });

/** Its constants as tensors. */
export function xieluConstants(g: Graph, beta: number, epsilon: number) {
  const constant = (value: number) => g.constant(`${value}`, "f32", [1], Float32Array.of(value));
  return { beta: constant(beta), epsilon: constant(epsilon) };
}

const attentionShapes: readonly Shape[] = [
  [2, 3, 4, 2],
  [2, 3, 2, 2],
  [2, 3, 2, 2],
];

const rope = (interleaved: boolean): OpCase => ({
  shapes: [[2, 3, 2, 6]],
  apply: (g, x) =>
    ops.rope(g, x, {
      rotaryDim: 4,
      theta: 100,
      attentionFactor: 1.25,
      interleaved,
      factors: Float32Array.of(1, 2),
      positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
    }),
});

/** From a teacher whose logits are constants. */
const divergence = (kind: ops.DivergenceKind, temperature: number): OpCase => ({
  shapes: [[4, 37]],
  apply: (g, student) => {
    const random = new Random(9);
    const logits = Float32Array.from({ length: elementCount(student.shape) }, () => 3 * random.normal());
    return ops.divergence(g, student, g.constant("teacher", "f32", student.shape, logits), { kind, temperature });
  },
});

/** Every op that has a gradient, at small sizes. */
export const OP_CASES: Readonly<Record<string, OpCase>> = {
  add: binary(ops.add, [
    [2, 3, 4],
    [2, 3, 4],
  ]),
  "add, broadcast": binary(ops.add, [[2, 3, 4], [4]]),
  firstColumns: { shapes: [[3, 7]], apply: (g, x) => ops.firstColumns(g, x, 5) },
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
  broadcastTo: { shapes: [[3, 1]], apply: (g, x) => ops.broadcastTo(g, x, shapeOnly(g, [3, 4])) },
  sumTo: { shapes: [[3, 4]], apply: (g, x) => ops.sumTo(g, x, shapeOnly(g, [1, 4])) },
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
    apply: (g, x, gain, bias) => ops.layerNorm(g, x, gain, bias, { epsilon: 1e-3 }),
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
    apply: (g, x, p, n) => xielu(g, x, p, n),
    low: 0.1,
  },
  "xielu of negative numbers": {
    shapes: [[2, 5], [1], [1]],
    apply: (g, x, p, n) => xielu(g, x, p, n),
    low: -2.1,
  },
  softmax: unary((g, x) => ops.softmax(g, x, { scale: 1.5 })),
  maskedSoftmax: { shapes: [[2, 3, 3]], apply: (g, x) => ops.maskedSoftmax(g, x, causalMask(g, 3), { scale: 0.7 }) },
  logSoftmax: unary((g, x) => ops.logSoftmax(g, x, { scale: 1 })),
  "logSoftmax, scaled": unary((g, x) => ops.logSoftmax(g, x, { scale: 0.5 })),
  rope: rope(false),
  "rope, interleaved": rope(true),
  scaleByPosition: {
    shapes: [[2, 3, 2, 4]],
    apply: (g, x) =>
      ops.scaleByPosition(g, x, {
        factors: Float32Array.of(1, -2, 0.5),
        positions: g.constant("places", "i32", [3], Int32Array.of(0, 2, 1)),
      }),
  },
  "splitLast, each part used": unary((g, x) => {
    const [first, second, third] = parts(g, x, [1, 2, 1]);
    return ops.concatLast(g, [ops.mul(g, second, first), ops.exp(g, third), second]);
  }),
  "splitLast, a part unused": unary((g, x) => ops.square(g, parts(g, x, [1, 2, 1])[1])),
  "splitLast, computed again": {
    shapes: [[2, 3, 4]],
    apply: (g, x) =>
      recomputed(g, x, (y) => {
        const [first, second] = parts(g, y, [1, 2, 1]);
        return ops.mul(g, second, ops.exp(g, ops.concatLast(g, [first, first])));
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
  embedding: { shapes: [[5, 3]], apply: (g, table) => ops.embedding(g, table, ids(g, 4, 0, 4, 2)) },
  gather: { shapes: [[3, 4]], apply: (g, x) => ops.gather(g, x, ids(g, 1, 11, 1, 6)) },
  crossEntropy: { shapes: [[3, 21]], apply: (g, x) => ops.crossEntropy(g, x, ids(g, 4, 21, 62)) },
  attention: {
    shapes: attentionShapes,
    apply: (g, q, k, v) => ops.attention(g, q, k, v, { scale: 0.7 }),
  },
  "attention with soft-capped scores in a window": {
    shapes: attentionShapes,
    apply: (g, q, k, v) => ops.attention(g, q, k, v, { scale: 0.7, softCap: 0.9, window: 2 }),
  },
  "attention with sinks": {
    shapes: [...attentionShapes, [4]],
    apply: (g, q, k, v, sinks) => ops.attention(g, q, k, v, { scale: 0.7, sinks }),
  },
  "attention with sinks and soft-capped scores": {
    shapes: [...attentionShapes, [4]],
    apply: (g, q, k, v, sinks) => ops.attention(g, q, k, v, { scale: 0.7, sinks, softCap: 0.9, window: 2 }),
  },
  "divergence, forward": divergence("forward-kl", 1),
  "divergence, forward, at a temperature": divergence("forward-kl", 2.5),
  "divergence, reverse": divergence("reverse-kl", 1),
  "divergence, Jensen and Shannon's": divergence("jensen-shannon", 2),
  "attention in blocks": {
    shapes: attentionShapes,
    apply: (g, q, k, v) => ops.composedAttention(g, q, k, v, { scale: 0.7, rows: 2 }),
  },
  "attention in blocks, with all its settings": {
    shapes: [...attentionShapes, [4]],
    apply: (g, q, k, v, sinks) =>
      ops.composedAttention(g, q, k, v, { scale: 0.7, sinks, softCap: 0.9, window: 2, rows: 2 }),
  },
};

/** Ops at sizes at which devices take other ways than at small ones. */
export const LARGE_OP_CASES: Readonly<Record<string, OpCase>> = {
  "sum of a million": { shapes: [[1024, 1024]], apply: (g, x) => ops.sum(g, x) },
  "matmul, large": binary(ops.matmul, [
    [256, 512],
    [192, 512],
  ]),
  "linear, a large vocabulary": binary(ops.linear, [
    [8, 128],
    [20000, 128],
  ]),
  "rmsNormGain, wide": binary((g, x, gain) => ops.rmsNormGain(g, x, gain, { epsilon: 1e-5 }), [[16, 4096], [4096]]),
  "swiglu, wide": binary(ops.swiglu, [
    [16, 8192],
    [16, 8192],
  ]),
  "softmax, long rows": { shapes: [[4, 30000]], apply: (g, x) => ops.softmax(g, x, { scale: 1 }) },
  "attention, long": {
    shapes: [
      [1, 384, 4, 64],
      [1, 384, 2, 64],
      [1, 384, 2, 64],
    ],
    apply: (g, q, k, v) => ops.attention(g, q, k, v, { scale: 0.125 }),
  },
  // more than the 65535 blocks that CUDA takes along some axes
  "embedding, a large vocabulary": {
    shapes: [[70000, 8]],
    apply: (g, table) => ops.embedding(g, table, ids(g, 0, 69999, 65536, 3)),
  },
  "crossEntropy, a large vocabulary": {
    shapes: [[8, 30000]],
    apply: (g, x) => ops.crossEntropy(g, x, ids(g, ...Array.from({ length: 8 }, (_, i) => i * 30000 + 17 * i))),
  },
};

/** Numbers for inputs: the same on every device. */
export function numbersFor(shapes: readonly Shape[], low: number): Float32Array[] {
  const random = new Random(7);
  return shapes.map((shape) => Float32Array.from({ length: elementCount(shape) }, () => low + 2 * random.uniform()));
}

/** The inputs of a case. */
export const inputsOf = ({ shapes, low = -1 }: OpCase): Float32Array[] => numbersFor(shapes, low);

/** A graph of a case's result, and of a loss that is a random weighting of it. */
export function buildCase(backend: Backend, one: OpCase) {
  const store = new TensorStore(backend, one.shapes.length);
  const inputs = one.shapes.map((shape, i) => store.add(`x${i}`, shape, "f32", { trainable: true }));
  store.allocate();
  const values = inputsOf(one);
  for (const [i, input] of inputs.entries()) store.write(input, elementAt(values, i));
  const g = new Graph(backend, { recompute: one.recompute ?? false });
  const result = one.apply(g, ...inputs);
  const random = new Random(8);
  const weights = Float32Array.from({ length: elementCount(result.shape) }, () => random.normal());
  const loss = ops.sum(g, ops.mul(g, result, g.constant("weights", "f32", result.shape, weights)));
  return { g, store, inputs, result, loss };
}

/**
 * The result of a case, and the gradients of its inputs.
 * @param freeLater takes what is to be freed when all computations are done: software drivers of Vulkan damage memory when buffers are
 *     freed between them
 */
export async function resultAndGradients(
  backend: Backend,
  one: OpCase,
  freeLater: (...resources: readonly { free(): void }[]) => void,
): Promise<Float32Array[]> {
  const { g, store, inputs, result, loss } = buildCase(backend, one);
  freeLater(g, store);
  return readAll(g, [result, ...gradients(g, loss, inputs)]);
}

/** Computes results, and reads them. */
export async function readAll(g: Graph, results: readonly Tensor[]): Promise<Float32Array[]> {
  // a copy: results may be views, or inputs that were changed in place
  const outputs = results.map((tensor) => g.output(ops.scale(g, tensor, { factor: 1 })));
  await g.run();
  return outputs.map((output) => g.read(output).slice());
}
