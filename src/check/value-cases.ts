import type { Backend } from "../ggml/device.js";
import { bytesOf, QUANTIZED_DTYPES, type StoredDType } from "../ggml/dtype.js";
import { convertRows } from "../quantize/convert.js";
import { elementAt } from "../system/arrays.js";
import { type ComputeType, Graph, gradients, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { ids, numbersFor, readAll } from "./op-cases.js";

/** Something without a gradient, or in other types than f32. */
export interface ValueCase {
  readonly inputs: readonly {
    readonly shape: readonly [rows: number, columns: number];
    readonly dtype?: StoredDType;
  }[];
  readonly apply: (g: Graph, ...inputs: Tensor[]) => readonly Tensor[];
  readonly computeType?: ComputeType;
  /** The largest difference that roundings make, where that is more than f32's. */
  readonly tolerance?: number;
  /** Whether a device may have no kernel for it. */
  readonly mayBeRefused?: boolean;
}

/** ggml rounds the other operand of a quantized matrix, too, and not on every device to the same type. */
const QUANTIZED_TOLERANCE = 0.02;
const QUANTIZED = { tolerance: QUANTIZED_TOLERANCE, mayBeRefused: true };
/** Of operands with 8 bits of mantissa. */
const BF16_TOLERANCE = 0.01;

const linearBy = (dtype: StoredDType, options: Partial<ValueCase>): ValueCase => ({
  inputs: [{ shape: [17, 512] }, { shape: [48, 512], dtype }],
  apply: (g, x, w) => [ops.linear(g, x, w)],
  ...options,
});

/** Two sequences of 96 positions, 4 heads of queries and 2 of keys and values, each of 64 channels. */
const attentionInBf16 = (attention: (g: Graph, q: Tensor, k: Tensor, v: Tensor) => Tensor): ValueCase => ({
  inputs: [{ shape: [192, 256] }, { shape: [192, 128] }, { shape: [192, 128] }],
  apply: (g, ...inputs) => {
    const leaves = inputs.map((input) => ({ ...input, requiresGrad: true }));
    const heads = (i: number, to: number) => ops.reshape(g, elementAt(leaves, i), { to: [2, 96, to, 64] });
    const result = attention(g, heads(0, 4), heads(1, 2), heads(2, 2));
    if (!result.requiresGrad) return [result];
    return [result, ...gradients(g, ops.sum(g, ops.mul(g, result, result)), leaves)];
  },
  computeType: "bf16",
  tolerance: BF16_TOLERANCE,
});

/** What `topKIndices` finds, as numbers: equal ones may be found in any order. */
const largestOf = (g: Graph, x: Tensor, k: number) => ops.takeAlongRows(g, x, ops.topKIndices(g, x, { k }));

/** Ops without a gradient, products with quantized weights, products and attention in bf16. */
export const VALUE_CASES: Readonly<Record<string, ValueCase>> = {
  "topKIndices, takeAlongRows": { inputs: [{ shape: [5, 40] }], apply: (g, x) => [largestOf(g, x, 7)] },
  "topKIndices of a large vocabulary": { inputs: [{ shape: [3, 30000] }], apply: (g, x) => [largestOf(g, x, 64)] },
  "argmax of a large vocabulary": {
    inputs: [{ shape: [3, 30000] }],
    apply: (g, x) => [ops.takeAlongRows(g, x, ops.argmax(g, x))],
  },
  "sign, step, clamp": {
    inputs: [{ shape: [6, 9] }],
    apply: (g, x) => [ops.sign(g, x), ops.step(g, x), ops.clamp(g, x, { low: -0.5, high: 0.25 })],
  },
  dotLast: { inputs: [{ shape: [6, 33] }, { shape: [6, 33] }], apply: (g, a, b) => [ops.dotLast(g, a, b)] },
  "concatRows, rowsOf": {
    inputs: [{ shape: [3, 8] }, { shape: [5, 8] }],
    apply: (g, a, b) => [ops.rowsOf(g, ops.concatRows(g, [a, b]), { from: 2, to: 6 })],
  },
  crossEntropyOfRows: {
    inputs: [{ shape: [4, 600] }],
    apply: (g, x) => [ops.crossEntropyOfRows(g, x, ids(g, 0, 1199, 1200, 1999))],
  },
  "sums of magnitudes": {
    inputs: [{ shape: [1, 12] }, { shape: [16, 48] }],
    apply: (g, sums, x) => [ops.addMagnitudes(g, sums, x, { batch: 4 })],
  },
  meanCosine: { inputs: [{ shape: [40, 64] }, { shape: [40, 64] }], apply: (g, x, y) => [ops.meanCosine(g, x, y)] },
  "sums of products": {
    inputs: [{ shape: [24, 40] }, { shape: [300, 24] }, { shape: [300, 40] }],
    apply: (g, sum, a, b) => [ops.addProducts(g, sum, a, b)],
  },
  ...Object.fromEntries(QUANTIZED_DTYPES.map((dtype) => [`linear by ${dtype}`, linearBy(dtype, QUANTIZED)])),
  "linear by f16": linearBy("f16", { tolerance: BF16_TOLERANCE }),
  "linear by bf16": linearBy("bf16", { tolerance: BF16_TOLERANCE }),
  "linear in bf16": linearBy("f32", { computeType: "bf16", tolerance: BF16_TOLERANCE }),
  "linear by bf16, in bf16": linearBy("bf16", { computeType: "bf16", tolerance: BF16_TOLERANCE }),
  "attention in bf16": attentionInBf16((g, q, k, v) =>
    g.withoutGradient(() => ops.attention(g, q, k, v, { scale: 0.3, window: 40 })),
  ),
  "attention in blocks, in bf16, and its gradients": attentionInBf16((g, q, k, v) =>
    ops.composedAttention(g, q, k, v, { scale: 0.3, softCap: 3, rows: 40 }),
  ),
  "embedding of bf16": {
    inputs: [{ shape: [50, 64], dtype: "bf16" }],
    apply: (g, table) => [ops.embedding(g, table, ids(g, 49, 0, 7, 7))],
  },
  "embedding of q8_0": {
    inputs: [{ shape: [50, 64], dtype: "q8_0" }],
    apply: (g, table) => [ops.embedding(g, table, ids(g, 49, 0, 7, 7))],
  },
};

/** The results of a case. @param freeLater as of `resultAndGradients` */
export async function valuesOf(
  backend: Backend,
  { inputs, apply, computeType }: ValueCase,
  freeLater: (...resources: readonly { free(): void }[]) => void,
): Promise<Float32Array[]> {
  const store = new TensorStore(backend, inputs.length);
  const tensors = inputs.map(({ shape, dtype = "f32" }, i) => store.add(`x${i}`, shape, dtype));
  store.allocate();
  const shapes = inputs.map(({ shape }) => shape);
  for (const [i, numbers] of numbersFor(shapes, -1).entries()) {
    const tensor = elementAt(tensors, i);
    const { dtype = "f32", shape } = elementAt(inputs, i);
    const [, columns] = shape;
    const importance = new Float32Array(columns).fill(1); // some types insist on one
    const conversion = { name: tensor.name, from: "f32", to: dtype, columns, importance } as const;
    store.write(tensor, await convertRows(bytesOf(numbers), conversion));
  }
  const g = new Graph(backend, { computeType });
  freeLater(g, store);
  return readAll(g, apply(g, ...tensors));
}
