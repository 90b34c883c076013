import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op } from "../op.js";
import { axisFromEnd, describe, sameShape, sizeAt, type Tensor } from "../tensor.js";
import { add, div, mul, scale, sub, sumLast, sumRows } from "./elementwise.js";
import { reshape, rowsOf } from "./shape.js";

/** Root-mean-square normalisation over the last axis (Zhang & Sennrich 2019, eq. 4), without a gain. */
export const rmsNorm: Op<[x: Tensor], { readonly epsilon: number }> = defineOp("rmsNorm", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { epsilon }) => f.ggml_rms_norm(context, x.handle, epsilon),
  vjp: (g, dy, { inputs: [x], attributes }) => [() => rmsNormBack(g, dy, x, attributes)],
});

const rmsNormBack: Op<[dy: Tensor, x: Tensor], { readonly epsilon: number }> = defineOp("rmsNormBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, x], { epsilon }) => f.ggml_rms_norm_back(context, dy.handle, x.handle, epsilon),
});

/** In how many parts the kernel sums the gain's gradient. */
const GAIN_PARTS = 16;

interface NormAttributes {
  readonly epsilon: number;
  /** Whether each row's mean is taken off first, which makes it layer normalisation. */
  readonly centred: boolean;
}

const normSettings = ({ epsilon, centred }: NormAttributes) => ({ flags: centred ? 1 : 0, value: epsilon });

/** Normalisation with a gain, in one pass. x: [rows, n]; gain: [n]. */
const fusedNorm: Op<[x: Tensor, gain: Tensor], NormAttributes> = defineOp("norm", 2, {
  shape: ([x]) => x.shape,
  kernel: (_, attributes) => ({ name: "norm", ...normSettings(attributes) }),
  vjp: (g, dy, { inputs: [x, gain], attributes }) => {
    const [rows = 1, n = 1] = x.shape;
    let both: Tensor | undefined;
    const result = () => {
      both ??= fusedNormBack(g, dy, x, gain, attributes);
      return both;
    };
    return [
      () => rowsOf(g, result(), { from: 0, to: rows }),
      () => reshape(g, sumRows(g, rowsOf(g, result(), { from: rows, to: rows + GAIN_PARTS })), { to: [n] }),
    ];
  },
});

/** The gradient of x, and below it parts of the sum that is the gain's. */
const fusedNormBack: Op<[dy: Tensor, x: Tensor, gain: Tensor], NormAttributes> = defineOp("normBack", 3, {
  shape: ([, x]) => [sizeAt(x, 0) + GAIN_PARTS, sizeAt(x, 1)],
  kernel: (_, attributes) => ({ name: "norm_back", ...normSettings(attributes) }),
});

/** x less the mean of its last axis. */
const centre: Op<[x: Tensor]> = defineOp("centre", 1, {
  shape: ([x]) => x.shape,
  composed: (g, [x]) => sub(g, x, scale(g, sumLast(g, x), { factor: 1 / axisFromEnd(x.shape, 1) })),
  vjp: (g, dy) => [() => centre(g, dy)],
});

/** @throws ShapeError when a gain or bias is not one for rows of x */
function checkPerChannel(x: Tensor, vector: Tensor, kind: string): void {
  if (x.shape.length !== 2 || vector.shape.join() !== String(x.shape[1]))
    throw new ShapeError(`${describe(vector)} is no ${kind} for the rows of ${describe(x)}`);
}

/** Root-mean-square normalisation over the last axis, times a gain. x: [rows, n]; gain: [n]. */
export function rmsNormGain(g: Graph, x: Tensor, gain: Tensor, { epsilon }: { readonly epsilon: number }): Tensor {
  checkPerChannel(x, gain, "gain");
  if (g.backend.kernels === undefined) return mul(g, rmsNorm(g, x, { epsilon }), gain);
  return fusedNorm(g, x, gain, { epsilon, centred: false });
}

/**
 * Layer normalisation over the last axis (Ba et al. 2016, eq. 4), times a gain and, where there is one, plus a bias.
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
  const normalised =
    g.backend.kernels === undefined
      ? mul(g, rmsNorm(g, centre(g, x), { epsilon }), gain) // a centred row's mean square is the row's variance
      : fusedNorm(g, x, gain, { epsilon, centred: true });
  return bias === undefined ? normalised : add(g, normalised, bias);
}

/**
 * softmax(x · scale + mask) over the last axis. x: [..., q, k]; mask: [q, k], 0 or -infinity.
 */
export const maskedSoftmax: Op<[x: Tensor, mask: Tensor], { readonly scale: number }> = defineOp("maskedSoftmax", 2, {
  shape: ([x, mask]) => {
    if (!sameShape(mask.shape, x.shape.slice(-2)))
      throw new ShapeError(`${describe(mask)} does not mask ${describe(x)}`);
    return x.shape;
  },
  build: ({ f, context }, [x, mask], { scale }) => f.ggml_soft_max_ext(context, x.handle, mask.handle, scale, 0),
  readsResult: true,
  vjp: (g, dy, { output, attributes }) => [() => softmaxBack(g, dy, output, attributes), null],
});

/** softmax(x · scale) over the last axis. */
export const softmax: Op<[x: Tensor], { readonly scale: number }> = defineOp("softmax", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { scale }) => f.ggml_soft_max_ext(context, x.handle, null, scale, 0),
  readsResult: true,
  vjp: (g, dy, { output, attributes }) => [() => softmaxBack(g, dy, output, attributes)],
});

const softmaxBack: Op<[dy: Tensor, y: Tensor], { readonly scale: number }> = defineOp("softmaxBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, y], { scale }) => {
    // ggml's planner may put the result where y is, and its kernel then reads what it has overwritten; an output's memory
    // is never given away
    f.ggml_set_output(y.handle);
    return f.ggml_soft_max_ext_back(context, dy.handle, y.handle, scale, 0);
  },
});

/** Below this probability its logarithm is cut off: e^-80, which f32 still represents. */
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
