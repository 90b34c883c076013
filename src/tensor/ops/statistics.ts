import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op } from "../op.js";
import { describe, elementCount, rowCount, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { abs, add, assign, div, mul, scale, sqrt, square, sum, sumLast, sumRows } from "./elementwise.js";
import { addRows } from "./lookup.js";
import { reshape } from "./shape.js";

/** Statistics of activations, in one pass on devices with kernels. No gradient. */

/** (mean_s ‖a[s, i]‖)² for each sequence, where a[s, i] is the i-th group of channels at position s: [batch, size]. */
const squaredMeans: Op<[x: Tensor], { readonly batch: number; readonly size: number }> = defineOp("squaredMeans", 1, {
  shape: ([x], { batch, size }) => {
    const [rows, width] = sizesOf(x, 2);
    if (rows % batch !== 0 || width % size !== 0)
      throw new ShapeError(`${describe(x)} is not ${batch} sequences of ${size} groups of channels`);
    return [batch, size];
  },
  kernel: ([x], { batch }) => ({ name: "squared_means", flags: rowCount(x) / batch }),
  composed: (g, [x], { batch, size }) => {
    const [rows, width] = sizesOf(x, 2);
    const groups = width === size ? undefined : reshape(g, x, { to: [rows, size, width / size] });
    const magnitudes = groups === undefined ? abs(g, x) : sqrt(g, sumLast(g, square(g, groups)));
    const perSample = reshape(g, magnitudes, { to: [batch, rows / batch, size] });
    const means = scale(g, sumRows(g, perSample), { factor: batch / rows }); // [batch, 1, size]
    return square(g, reshape(g, means, { to: [batch, size] }));
  },
});

/**
 * Adds to sums [1, size], in place, Σ_b (mean_s ‖a[b, s, i]‖)², where a[b, s, i] is the i-th group of channels at position s of
 * sequence b (its magnitude where a group is one channel). Make the result an effect of the graph.
 * x: [batch · seq, size · channels]
 */
export function addMagnitudes(g: Graph, sums: Tensor, x: Tensor, { batch }: { readonly batch: number }): Tensor {
  const squares = squaredMeans(g, x, { batch, size: elementCount(sums.shape) });
  if (g.backend.kernels === undefined) return assign(g, add(g, sumRows(g, squares), sums), sums);
  return addRows(g, sums, squares, g.constant(`zeros ${batch}`, "i32", [batch], new Int32Array(batch)));
}

/** How many partial sums the kernel computes. */
const COSINE_PARTS = 64;

const partialCosines: Op<[x: Tensor, y: Tensor]> = defineOp("cosines", 2, {
  shape: () => [COSINE_PARTS],
  kernel: () => ({ name: "cosines" }),
});

function composedCosines(g: Graph, x: Tensor, y: Tensor): Tensor {
  // a row of zeros is like no other: its cosine is 0
  const norm = (tensor: Tensor) => sqrt(g, scale(g, sumLast(g, square(g, tensor)), { factor: 1, bias: 1e-30 }));
  return div(g, sumLast(g, mul(g, x, y)), mul(g, norm(x), norm(y)));
}

/** Mean over rows of the cosine between two [rows, width] tensors -> [1]. */
export function meanCosine(g: Graph, x: Tensor, y: Tensor): Tensor {
  const [rows] = sizesOf(x, 2);
  if (!sameShape(x.shape, y.shape))
    throw new ShapeError(`${describe(x)} and ${describe(y)} are not rows of the same length`);
  const cosines = g.backend.kernels === undefined ? composedCosines(g, x, y) : partialCosines(g, x, y);
  return scale(g, sum(g, cosines), { factor: 1 / rows });
}
