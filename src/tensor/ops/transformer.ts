import type { Pointer } from "../../ggml/functions.js";
import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import type { Native } from "../op.js";
import { defineOp, INDICES, type Op } from "../op.js";
import { axisFromEnd, describe, elementCount, sameShape, type Tensor } from "../tensor.js";
import { div, mul, sub, sumLast, sumRows } from "./elementwise.js";
import { embedding } from "./lookup.js";
import { part, reshape, rowsOf } from "./shape.js";

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

/** Root-mean-square normalisation with a gain, in one pass. x: [rows, n]; gain: [n]. */
const fusedNorm: Op<[x: Tensor, gain: Tensor], { readonly epsilon: number }> = defineOp("rmsNorm", 2, {
  shape: ([x]) => x.shape,
  kernel: (_, { epsilon }) => ({ name: "rms_norm", value: epsilon }),
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
const fusedNormBack: Op<[dy: Tensor, x: Tensor, gain: Tensor], { readonly epsilon: number }> = defineOp(
  "rmsNormBack",
  3,
  {
    shape: ([, x]) => [(x.shape[0] ?? 1) + GAIN_PARTS, x.shape[1] ?? 1],
    kernel: (_, { epsilon }) => ({ name: "rms_norm_back", value: epsilon }),
  },
);

/** Root-mean-square normalisation over the last axis, times a gain. x: [rows, n]; gain: [n]. */
export function rmsNormGain(g: Graph, x: Tensor, gain: Tensor, attributes: { readonly epsilon: number }): Tensor {
  if (x.shape.length !== 2 || gain.shape.join() !== String(x.shape[1]))
    throw new ShapeError(`${describe(gain)} is no gain for the rows of ${describe(x)}`);
  return g.backend.kernels === undefined ? mul(g, rmsNorm(g, x, attributes), gain) : fusedNorm(g, x, gain, attributes);
}

/** x · sigmoid(x). */
export const silu: Op<[x: Tensor]> = defineOp("silu", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_silu(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => siluBack(g, dy, x)],
});

const siluBack: Op<[dy: Tensor, x: Tensor]> = defineOp("siluBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, x]) => f.ggml_silu_back(context, dy.handle, x.handle),
});

/** silu(gate) · up, the gated FFN activation (Shazeer 2020, eq. 6). */
export const swiglu: Op<[gate: Tensor, up: Tensor]> = defineOp("swiglu", 2, {
  shape: ([gate, up]) => {
    if (!sameShape(gate.shape, up.shape))
      throw new ShapeError(`${describe(gate)} gates ${describe(up)}: shapes differ`);
    return gate.shape;
  },
  kernel: () => ({ name: "swiglu" }),
  build: ({ f, context }, [gate, up]) => f.ggml_swiglu_split(context, gate.handle, up.handle),
  vjp: (g, dy, { inputs: [gate, up] }) => {
    if (g.backend.kernels === undefined)
      return [() => siluBack(g, mul(g, dy, up), gate), () => mul(g, dy, silu(g, gate))];
    let both: Tensor | undefined;
    const half = (which: number) => () => {
      both ??= swigluBack(g, dy, gate, up);
      return part(g, both, { offset: which * elementCount(gate.shape), to: gate.shape });
    };
    return [half(0), half(1)];
  },
});

/** The gradients of gate and up, one after the other. */
const swigluBack: Op<[dy: Tensor, gate: Tensor, up: Tensor]> = defineOp("swigluBack", 3, {
  shape: ([, gate]) => [2 * elementCount(gate.shape)],
  kernel: () => ({ name: "swiglu_back" }),
});

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
  vjp: (g, dy, { output, attributes }) => [() => softmaxBack(g, dy, output, attributes), null],
});

/** softmax(x · scale) over the last axis. */
export const softmax: Op<[x: Tensor], { readonly scale: number }> = defineOp("softmax", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { scale }) => f.ggml_soft_max_ext(context, x.handle, null, scale, 0),
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

/** How positions become rotation angles: the first `rotaryDim` channels of each head, split-half layout. */
export interface RotaryAttributes {
  readonly rotaryDim: number;
  readonly theta: number;
  /** What each channel pair's frequency is divided by, [rotaryDim / 2]. */
  readonly factors: Float32Array;
  /** Multiplies cosine and sine (YaRN's attention factor). */
  readonly attentionFactor: number;
  /** The position of each place in a sequence, i32 [sequence], below the sequence's length; 0, 1, 2, ... by default. */
  readonly positions?: Tensor | undefined;
}

/**
 * Rotary position embedding (Su et al. 2021, eq. 34): channel pair i at position p turns by
 * p · theta^(-2i/rotaryDim) / factors[i].
 * x: [batch, sequence, heads, headDim]
 */
export function rope(g: Graph, x: Tensor, attributes: RotaryAttributes): Tensor {
  const { rotaryDim, theta, factors, attentionFactor } = attributes;
  const seq = x.shape[1] ?? 1;
  const { positions } = attributes;
  const half = rotaryDim / 2;
  const fits =
    x.shape.length === 4 &&
    (positions === undefined || positions.shape.join() === `${seq}`) &&
    rotaryDim % 2 === 0 &&
    rotaryDim <= axisFromEnd(x.shape, 1) &&
    factors.length === half;
  if (!fits)
    throw new ShapeError(
      `rotating ${rotaryDim} channels of ${describe(x)} by ${positions?.shape.join() ?? seq} positions and ${factors.length} factors does not fit`,
    );
  const key = `${theta} ${rotaryDim} ${attentionFactor} ${factors.join()}`;
  if (g.backend.kernels === undefined) {
    const places =
      positions ??
      g.constant(
        `positions ${seq}`,
        "i32",
        [seq],
        Int32Array.from({ length: seq }, (_, i) => i),
      );
    return ggmlRope(g, x, places, g.constant(`rotary ${key}`, "f32", [half], factors), attributes);
  }
  const table = g.constant(
    `rotary ${key} ${seq}`,
    "f32",
    [seq, rotaryDim],
    Float32Array.from({ length: seq * rotaryDim }, (_, i) => {
      const channel = i % half;
      const angle = (Math.floor(i / rotaryDim) * theta ** (-channel / half)) / (factors[channel] ?? 1);
      return attentionFactor * (i % rotaryDim < half ? Math.cos(angle) : Math.sin(angle));
    }),
  );
  const chosen = positions === undefined ? table : embedding(g, table, positions);
  return tableRope(g, x, reshape(g, chosen, { to: [seq, 2, half] }), { backwards: false });
}

const tableRope: Op<[x: Tensor, table: Tensor], { readonly backwards: boolean }> = defineOp("rope", 2, {
  shape: ([x]) => x.shape,
  kernel: (_, { backwards }) => ({ name: "rope", flags: backwards ? 1 : 0 }),
  vjp: (g, dy, { inputs: [, table] }) => [() => tableRope(g, dy, table, { backwards: true }), null],
});

const ggmlRope: Op<[x: Tensor, positions: Tensor, factors: Tensor], RotaryAttributes> = defineOp("rope", 3, {
  accepts: [undefined, INDICES],
  shape: ([x]) => x.shape,
  build: (native, inputs, attributes) => rotate(native, "ggml_rope_ext", inputs, attributes),
  vjp: (g, dy, { inputs: [, positions, factors], attributes }) => [
    () => ggmlRopeBack(g, dy, positions, factors, attributes),
    null,
    null,
  ],
});

const ggmlRopeBack: Op<[dy: Tensor, positions: Tensor, factors: Tensor], RotaryAttributes> = defineOp("ropeBack", 3, {
  accepts: [undefined, INDICES],
  shape: ([dy]) => dy.shape,
  build: (native, inputs, attributes) => rotate(native, "ggml_rope_ext_back", inputs, attributes),
});

/** GPT-NeoX layout: channel i turns with channel i + rotaryDim / 2. */
const SPLIT_HALF = 2;

const rotate = (
  { f, context }: Native,
  direction: "ggml_rope_ext" | "ggml_rope_ext_back",
  [x, positions, factors]: readonly [Tensor, Tensor, Tensor],
  { rotaryDim, theta, attentionFactor }: RotaryAttributes,
): Pointer =>
  f[direction](
    ...([context, x.handle, positions.handle, factors.handle, rotaryDim, SPLIT_HALF, 0] as const),
    ...([theta, 1, 0, attentionFactor, 0, 0] as const),
  );
