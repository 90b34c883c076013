import { createHash } from "node:crypto";
import type { Pointer } from "../../ggml/functions.js";
import { elementAt } from "../../system/arrays.js";
import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Native, type Op } from "../op.js";
import { axisFromEnd, describe, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { mul } from "./elementwise.js";
import { embedding } from "./lookup.js";
import { reshape } from "./shape.js";

/** How positions become rotation angles. */
export interface RotaryAttributes {
  /** How many channels of each head are rotated: the first ones. */
  readonly rotaryDim: number;
  readonly theta: number;
  /** Divides the frequency of each channel pair, [rotaryDim / 2]. */
  readonly factors: Float32Array;
  /** Multiplies cosines and sines (YaRN's attention factor). */
  readonly attentionFactor: number;
  /** Whether channels 2i and 2i + 1 are a pair (GLM-4, ERNIE 4.5); i and i + rotaryDim / 2 by default. */
  readonly interleaved?: boolean | undefined;
  /** The position of each token in a sequence, i32 [sequence], below the sequence's length; 0, 1, 2, ... by default. */
  readonly positions?: Tensor | undefined;
}

/**
 * Rotary position embedding (Su et al. 2021, eq. 34): channel pair i at position p is rotated by
 * p · theta^(-2i/rotaryDim) / factors[i].
 * x: [batch, sequence, heads, headDim]
 * @throws ShapeError when sizes do not fit
 */
export function rope(g: Graph, x: Tensor, attributes: RotaryAttributes): Tensor {
  const { rotaryDim, theta, factors, attentionFactor, positions, interleaved = false } = attributes;
  const [, seq] = sizesOf(x, 4);
  const half = rotaryDim / 2;
  const fits =
    (positions === undefined || sameShape(positions.shape, [seq])) &&
    rotaryDim % 2 === 0 &&
    rotaryDim <= axisFromEnd(x.shape, 1) &&
    factors.length === half;
  if (!fits)
    throw new ShapeError(
      `rotating ${rotaryDim} channels of ${describe(x)} by ${positions?.shape.join() ?? seq} positions and ${factors.length} factors does not fit`,
    );
  const key = `${theta} ${rotaryDim} ${attentionFactor} ${factors.join()}`;
  if (g.backend.kernels === undefined) {
    const inOrder = () => g.constant(`positions ${seq}`, "i32", [seq], () => Int32Array.from(Array(seq).keys()));
    return ggmlRope(g, x, positions ?? inOrder(), g.constant(`rotary ${key}`, "f32", [half], factors), attributes);
  }
  const table = g.constant(`rotary ${key} ${seq}`, "f32", [seq, rotaryDim], () => rotations(seq, attributes));
  const chosen = positions === undefined ? table : embedding(g, table, positions);
  return tableRope(g, x, reshape(g, chosen, { to: [seq, 2, half] }), { interleaved, backwards: false });
}

/** Cosines and then sines of each position's angles, [seq, rotaryDim]. */
function rotations(seq: number, { rotaryDim, theta, factors, attentionFactor }: RotaryAttributes): Float32Array {
  const half = rotaryDim / 2;
  const frequencies = Float64Array.from(factors, (factor, channel) => theta ** (-channel / half) / factor);
  const table = new Float32Array(seq * rotaryDim);
  for (let position = 0; position < seq; position++)
    frequencies.forEach((frequency, channel) => {
      const angle = position * frequency;
      table[position * rotaryDim + channel] = attentionFactor * Math.cos(angle);
      table[position * rotaryDim + half + channel] = attentionFactor * Math.sin(angle);
    });
  return table;
}

/** Bits of the kernel's flags. */
const FLAG = { backwards: 1, interleaved: 2 };

interface Rotation {
  readonly interleaved: boolean;
  readonly backwards: boolean;
}

const tableRope: Op<[x: Tensor, table: Tensor], Rotation> = defineOp("rope", 2, {
  shape: ([x]) => x.shape,
  kernel: (_, { interleaved, backwards }) => ({
    name: "rope",
    flags: (backwards ? FLAG.backwards : 0) | (interleaved ? FLAG.interleaved : 0),
  }),
  vjp: (g, dy, { inputs: [, table], attributes }) => [
    () => tableRope(g, dy, table, { ...attributes, backwards: true }),
    null,
  ],
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

/** ggml's constants for pairs: channels i and i + rotaryDim / 2 (GPT-NeoX), or neighbors (GPT-J). */
const LAYOUT = { splitHalf: 2, interleaved: 0 };

const rotate = (
  { f, context }: Native,
  direction: "ggml_rope_ext" | "ggml_rope_ext_back",
  [x, positions, factors]: readonly [Tensor, Tensor, Tensor],
  { rotaryDim, theta, attentionFactor, interleaved }: RotaryAttributes,
): Pointer => {
  const layout = interleaved ? LAYOUT.interleaved : LAYOUT.splitHalf;
  const [originalContext, frequencyScale, extrapolation, betaFast, betaSlow] = [0, 1, 0, 0, 0]; // YaRN's: `factors` has its effect
  return f[direction](
    context,
    x.handle,
    positions.handle,
    factors.handle,
    rotaryDim,
    layout,
    originalContext,
    theta,
    frequencyScale,
    extrapolation,
    attentionFactor,
    betaFast,
    betaSlow,
  );
};

/** Settings of {@link scaleByPosition}. */
export interface PositionFactors {
  /** The factor of position p is factors[p]. */
  readonly factors: Float32Array;
  /** As in {@link RotaryAttributes}; each below the number of factors. */
  readonly positions?: Tensor | undefined;
}

/** x times a factor for each position. x: [batch, sequence, heads, headDim]. @throws ShapeError when there are too few factors */
export function scaleByPosition(g: Graph, x: Tensor, { factors, positions }: PositionFactors): Tensor {
  const [, seq, , headDim] = sizesOf(x, 4);
  const known = Math.min(factors.length, seq);
  const fits = known > 0 && (positions === undefined ? known === seq : sameShape(positions.shape, [seq]));
  if (!fits)
    throw new ShapeError(
      `scaling ${describe(x)} by ${factors.length} factors at ${positions?.shape.join() ?? seq} positions does not fit`,
    );
  const used = factors.subarray(0, known);
  const digest = createHash("sha256").update(used).digest("hex").slice(0, 16);
  // as wide as a head, because ggml is slow at multiplying rows by one number each
  const table = g.constant(`factors ${digest} ${known} ${headDim}`, "f32", [known, headDim], () =>
    Float32Array.from({ length: known * headDim }, (_, i) => elementAt(used, Math.floor(i / headDim))),
  );
  const chosen = positions === undefined ? table : embedding(g, table, positions);
  return mul(g, x, reshape(g, chosen, { to: [seq, 1, headDim] }));
}
