import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op } from "../op.js";
import { describe, elementCount, sameShape, sizeAt, type Tensor } from "../tensor.js";
import { abs, add, assign, div, mul, scale, sqrt, square, sum, sumLast, sumRows } from "./elementwise.js";
import { addRows } from "./lookup.js";
import { reshape } from "./shape.js";

/** Statistics of activations, in one pass where there are kernels. No gradient. */

/** For each sequence (mean_s ‖a[s, i]‖)², a[s, i] being run i of the channels at position s: [batch, size]. */
const squaredMeans: Op<[x: Tensor], { readonly batch: number; readonly size: number }> = defineOp("squaredMeans", 1, {
  shape: ([x], { batch, size }) => {
    if (x.shape.length !== 2 || sizeAt(x, 0) % batch !== 0 || sizeAt(x, 1) % size !== 0)
      throw new ShapeError(`${describe(x)} is not ${batch} sequences of ${size} runs of channels`);
    return [batch, size];
  },
  kernel: ([x], { batch }) => ({ name: "squared_means", flags: sizeAt(x, 0) / batch }),
  composed: (g, [x], { batch, size }) => {
    const rows = sizeAt(x, 0);
    const channels = sizeAt(x, 1) / size;
    const runs = channels === 1 ? undefined : reshape(g, x, { to: [rows, size, channels] });
    const magnitudes = runs === undefined ? abs(g, x) : sqrt(g, sumLast(g, square(g, runs)));
    const perSample = reshape(g, magnitudes, { to: [batch, rows / batch, size] });
    const means = scale(g, sumRows(g, perSample), { factor: batch / rows }); // [batch, 1, size]
    return square(g, reshape(g, means, { to: [batch, size] }));
  },
});

/**
 * Adds to sums [1, size], in place, Σ_b (mean_s ‖a[b, s, i]‖)², where a[b, s, i] is run i of the channels at position s of
 * sequence b (a magnitude where a run is one channel). Make it an effect of the graph.
 * x: [batch · seq, size · channels]
 */
export function addMagnitudes(g: Graph, sums: Tensor, x: Tensor, { batch }: { readonly batch: number }): Tensor {
  const squares = squaredMeans(g, x, { batch, size: elementCount(sums.shape) });
  if (g.backend.kernels === undefined) return assign(g, add(g, sumRows(g, squares), sums), sums);
  return addRows(g, sums, squares, g.constant(`zeros ${batch}`, "i32", [batch], new Int32Array(batch)));
}

/** How many partial sums the kernel makes. */
const COSINE_PARTS = 64;

const partialCosines: Op<[x: Tensor, y: Tensor]> = defineOp("cosines", 2, {
  shape: () => [COSINE_PARTS],
  kernel: () => ({ name: "cosines" }),
});

function composedCosines(g: Graph, x: Tensor, y: Tensor): Tensor {
  const norm = (tensor: Tensor) => sqrt(g, sumLast(g, square(g, tensor)));
  return div(g, sumLast(g, mul(g, x, y)), mul(g, norm(x), norm(y)));
}

/** Mean over rows of the cosine between two [rows, width] tensors -> [1]. */
export function meanCosine(g: Graph, x: Tensor, y: Tensor): Tensor {
  if (x.shape.length !== 2 || !sameShape(x.shape, y.shape))
    throw new ShapeError(`${describe(x)} and ${describe(y)} are not rows of the same length`);
  const cosines = g.backend.kernels === undefined ? composedCosines(g, x, y) : partialCosines(g, x, y);
  return scale(g, sum(g, cosines), { factor: 1 / sizeAt(x, 0) });
}
