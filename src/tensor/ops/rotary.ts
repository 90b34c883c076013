import { createHash } from "node:crypto";
import type { Pointer } from "../../ggml/functions.js";
import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Native, type Op } from "../op.js";
import { axisFromEnd, describe, type Tensor } from "../tensor.js";
import { mul } from "./elementwise.js";
import { embedding } from "./lookup.js";
import { reshape } from "./shape.js";

/** How positions become rotation angles, of the first `rotaryDim` channels of each head. */
export interface RotaryAttributes {
  readonly rotaryDim: number;
  readonly theta: number;
  /** What each channel pair's frequency is divided by, [rotaryDim / 2]. */
  readonly factors: Float32Array;
  /** Multiplies cosine and sine (YaRN's attention factor). */
  readonly attentionFactor: number;
  /** Whether a pair is channels 2i and 2i + 1 (GLM-4, ERNIE 4.5); i and i + rotaryDim / 2 by default. */
  readonly interleaved?: boolean | undefined;
  /** The position of each place in a sequence, i32 [sequence], below the sequence's length; 0, 1, 2, ... by default. */
  readonly positions?: Tensor | undefined;
}

/**
 * Rotary position embedding (Su et al. 2021, eq. 34): channel pair i at position p turns by
 * p · theta^(-2i/rotaryDim) / factors[i].
 * x: [batch, sequence, heads, headDim]
 */
export function rope(g: Graph, x: Tensor, attributes: RotaryAttributes): Tensor {
  const { rotaryDim, theta, factors, attentionFactor, positions, interleaved = false } = attributes;
  const seq = x.shape[1] ?? 1;
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
  return tableRope(g, x, reshape(g, chosen, { to: [seq, 2, half] }), { interleaved, backwards: false });
}

/** Bits of the kernel's flags. */
const FLAG = { backwards: 1, interleaved: 2 };

interface Turn {
  readonly interleaved: boolean;
  readonly backwards: boolean;
}

const tableRope: Op<[x: Tensor, table: Tensor], Turn> = defineOp("rope", 2, {
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

/** ggml's names for the layouts: channel i turns with channel i + rotaryDim / 2 (GPT-NeoX's), or with its neighbour (GPT-J's). */
const LAYOUT = { splitHalf: 2, interleaved: 0 };

const rotate = (
  { f, context }: Native,
  direction: "ggml_rope_ext" | "ggml_rope_ext_back",
  [x, positions, factors]: readonly [Tensor, Tensor, Tensor],
  { rotaryDim, theta, attentionFactor, interleaved }: RotaryAttributes,
): Pointer => {
  const layout = interleaved ? LAYOUT.interleaved : LAYOUT.splitHalf;
  return f[direction](
    ...([context, x.handle, positions.handle, factors.handle, rotaryDim, layout, 0] as const),
    ...([theta, 1, 0, attentionFactor, 0, 0] as const),
  );
};

/** Factors by position. */
export interface PositionFactors {
  /** The factor of position p is factors[p]. */
  readonly factors: Float32Array;
  /** As in {@link RotaryAttributes}; each below the number of factors. */
  readonly positions?: Tensor | undefined;
}

/** x, each position times its factor. x: [batch, sequence, heads, headDim] */
export function scaleByPosition(g: Graph, x: Tensor, { factors, positions }: PositionFactors): Tensor {
  const [, seq = 1, , headDim = 1] = x.shape;
  const known = Math.min(factors.length, seq);
  const fits =
    x.shape.length === 4 &&
    known > 0 &&
    (positions === undefined ? known === seq : positions.shape.join() === `${seq}`);
  if (!fits)
    throw new ShapeError(
      `scaling ${describe(x)} by ${factors.length} factors at ${positions?.shape.join() ?? seq} positions does not fit`,
    );
  const used = factors.subarray(0, known);
  const digest = createHash("sha256").update(used).digest("hex").slice(0, 16);
  // as wide as a head: ggml multiplies by a number a row slowly
  const table = g.constant(
    `factors ${digest} ${known} ${headDim}`,
    "f32",
    [known, headDim],
    Float32Array.from({ length: known * headDim }, (_, i) => used[Math.floor(i / headDim)] ?? 1),
  );
  const chosen = positions === undefined ? table : embedding(g, table, positions);
  return mul(g, x, reshape(g, chosen, { to: [seq, 1, headDim] }));
}
