import { ShapeError } from "../../system/errors.js";
import { once } from "../gradient.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op } from "../op.js";
import { axisFromEnd, describe, rowCount, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { add, div, mul, scale, sub, sumLast, sumRows } from "./elementwise.js";
import { reshape, rowsOf } from "./shape.js";

/** Root-mean-square normalization over the last axis (Zhang & Sennrich 2019, eq. 4), without a gain. */
export const rmsNorm: Op<[x: Tensor], { readonly epsilon: number }> = defineOp("rmsNorm", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { epsilon }) => f.ggml_rms_norm(context, x.handle, epsilon),
  vjp: (g, dy, { inputs: [x], attributes }) => [() => rmsNormBack(g, dy, x, attributes)],
});

const rmsNormBack: Op<[dy: Tensor, x: Tensor], { readonly epsilon: number }> = defineOp("rmsNormBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, x], { epsilon }) => f.ggml_rms_norm_back(context, dy.handle, x.handle, epsilon),
});

/** How many partial sums the kernel computes for the gain's gradient. */
const GAIN_PARTS = 16;

interface NormAttributes {
  readonly epsilon: number;
  /** Whether to subtract each row's mean first, as layer normalization does. */
  readonly centered: boolean;
}

const normSettings = ({ epsilon, centered }: NormAttributes) => ({ flags: centered ? 1 : 0, value: epsilon });

/** Normalization with a gain, in one pass. x: [rows, n]; gain: [n]. */
const fusedNorm: Op<[x: Tensor, gain: Tensor], NormAttributes> = defineOp("norm", 2, {
  shape: ([x]) => x.shape,
  kernel: (_, attributes) => ({ name: "norm", ...normSettings(attributes) }),
  isCheap: true,
  vjp: (g, dy, { inputs: [x, gain], attributes }) => {
    const [rows, n] = sizesOf(x, 2);
    const both = once(() => fusedNormBack(g, dy, x, gain, attributes));
    return [
      () => rowsOf(g, both(), { from: 0, to: rows }),
      () => reshape(g, sumRows(g, rowsOf(g, both(), { from: rows, to: rows + GAIN_PARTS })), { to: [n] }),
    ];
  },
});

/** The gradient of x, and in further rows partial sums of the gain's gradient. */
const fusedNormBack: Op<[dy: Tensor, x: Tensor, gain: Tensor], NormAttributes> = defineOp("normBack", 3, {
  shape: ([, x]) => [rowCount(x) + GAIN_PARTS, axisFromEnd(x.shape, 1)],
  kernel: (_, attributes) => ({ name: "norm_back", ...normSettings(attributes) }),
});

/** x minus the mean over its last axis. */
const center: Op<[x: Tensor]> = defineOp("center", 1, {
  shape: ([x]) => x.shape,
  composed: (g, [x]) => sub(g, x, scale(g, sumLast(g, x), { factor: 1 / axisFromEnd(x.shape, 1) })),
  vjp: (g, dy) => [() => center(g, dy)],
});

/** @throws ShapeError when a gain or bias does not have as many elements as rows of x */
function checkPerChannel(x: Tensor, vector: Tensor, kind: string): void {
  if (x.shape.length !== 2 || !sameShape(vector.shape, x.shape.slice(1)))
    throw new ShapeError(`${describe(vector)} is not a ${kind} for the rows of ${describe(x)}`);
}

/** Root-mean-square normalization over the last axis, times a gain. x: [rows, n]; gain: [n]. */
export function rmsNormGain(g: Graph, x: Tensor, gain: Tensor, { epsilon }: { readonly epsilon: number }): Tensor {
  checkPerChannel(x, gain, "gain");
  if (g.backend.kernels === undefined) return mul(g, rmsNorm(g, x, { epsilon }), gain);
  return fusedNorm(g, x, gain, { epsilon, centered: false });
}

/**
 * Layer normalization over the last axis (Ba et al. 2016, eq. 4), times a gain plus an optional bias.
 * x: [rows, n]; gain, bias: [n].
 */
export function layerNorm(
  g: Graph,
  x: Tensor,
  gain: Tensor,
  bias: Tensor | undefined,
  { epsilon }: { readonly epsilon: number },
): Tensor {
  checkPerChannel(x, gain, "gain");
  if (bias !== undefined) checkPerChannel(x, bias, "bias");
  const normalized =
    g.backend.kernels === undefined
      ? mul(g, rmsNorm(g, center(g, x), { epsilon }), gain) // a centered row's mean square is the row's variance
      : fusedNorm(g, x, gain, { epsilon, centered: true });
  return bias === undefined ? normalized : add(g, normalized, bias);
}

/** softmax(x · scale + mask) over the last axis. x: [..., q, k]; mask: [q, k], 0 or -infinity. */
export const maskedSoftmax: Op<[x: Tensor, mask: Tensor], { readonly scale: number }> = defineOp("maskedSoftmax", 2, {
  shape: ([x, mask]) => {
    if (!sameShape(mask.shape, x.shape.slice(-2)))
      throw new ShapeError(`${describe(mask)} does not mask ${describe(x)}`);
    return x.shape;
  },
  build: ({ f, context }, [x, mask], { scale }) => f.ggml_soft_max_ext(context, x.handle, mask.handle, scale, 0),
  readsOutput: true,
  vjp: (g, dy, { output, attributes }) => [() => softmaxBack(g, dy, output, attributes), null],
});

/** softmax(x · scale) over the last axis. */
export const softmax: Op<[x: Tensor], { readonly scale: number }> = defineOp("softmax", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { scale }) => f.ggml_soft_max_ext(context, x.handle, null, scale, 0),
  readsOutput: true,
  vjp: (g, dy, { output, attributes }) => [() => softmaxBack(g, dy, output, attributes)],
});

const softmaxBack: Op<[dy: Tensor, y: Tensor], { readonly scale: number }> = defineOp("softmaxBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, y], { scale }) => {
    // ggml's planner may put the output in y's memory, and its kernel would then read what it has overwritten; the memory of
    // graph outputs is never reused
    f.ggml_set_output(y.handle);
    return f.ggml_soft_max_ext_back(context, dy.handle, y.handle, scale, 0);
  },
});

/** Smaller probabilities are raised to this before the logarithm: e^-80, which f32 still represents. */
const SMALLEST_PROBABILITY = 1.8e-35;

/** log softmax(x · scale) over the last axis. */
export const logSoftmax: Op<[x: Tensor], { readonly scale: number }> = defineOp("logSoftmax", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { scale }) => {
    const probabilities = f.ggml_soft_max_ext(context, x.handle, null, scale, 0);
    return f.ggml_log(context, f.ggml_clamp(context, probabilities, SMALLEST_PROBABILITY, 1));
  },
  vjp: (g, dy, { inputs: [x], attributes: { scale } }) => [
    () => {
      const spread = mul(g, softmax(g, x, { scale }), sumLast(g, dy));
      const gradient = sub(g, dy, spread); // dy - softmax(x) Σ dy
      return scale === 1
        ? gradient
        : div(g, gradient, g.constant(`1/${scale}`, "f32", [1], Float32Array.of(1 / scale)));
    },
  ],
});
