import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Op } from "../op.js";
import { describe, elementCount, type Tensor } from "../tensor.js";
import { matmul } from "./matmul.js";
import { part, permute, reshape } from "./shape.js";
import { maskedSoftmax } from "./transformer.js";

export interface AttentionAttributes {
  /** Multiplies the scores, usually 1/√headDim. */
  readonly scale: number;
  /** How many positions a query reads, its own included; all before it by default. */
  readonly window?: number | undefined;
  /** Where the one sequence is a forest. No gradient. */
  readonly forest?: Forest | undefined;
}

/**
 * Token sequences that share their beginnings, as one: a forest (one tree, or several) written in depth-first order, each token once.
 * A token reads itself and what is above it. Made by {@link forestInput}.
 */
export interface Forest {
  /** How far below its root each token is, i32 [places]. */
  readonly positions: Tensor;
  /** On devices with kernels where each token's subtree ends, i32 [places]; elsewhere an additive mask [places, places]. */
  readonly visibility: Tensor;
}

/** What a forest is at a time. */
export interface ForestLayout {
  readonly positions: Int32Array;
  /** The place after the last token of each token's subtree. */
  readonly ends: Int32Array;
}

/** A forest of so many places that is written before each run. */
export function forestInput(g: Graph, places: number): Forest {
  const [dtype, shape] =
    g.backend.kernels === undefined ? (["f32", [places, places]] as const) : (["i32", [places]] as const);
  return { positions: g.input("positions", "i32", [places]), visibility: g.input("visibility", dtype, shape) };
}

export function writeForest(g: Graph, forest: Forest, { positions, ends }: ForestLayout): void {
  g.write(forest.positions, positions);
  g.write(
    forest.visibility,
    forest.visibility.dtype === "i32" ? ends : maskOf((i, j) => i < (ends[j] ?? 0), ends.length),
  );
}

/**
 * Causal scaled dot-product attention with grouped queries (Ainslie et al. 2023): query head h reads key-value head
 * ⌊h · kvHeads / heads⌋. q: [batch, seq, heads, headDim]; k, v: [batch, seq, kvHeads, headDim] -> [batch · seq, heads · headDim]
 */
export function attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, attributes: AttentionAttributes): Tensor {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  const kvHeads = k.shape[2] ?? 0;
  const fits =
    q.shape.length === 4 &&
    k.shape.join() === v.shape.join() &&
    k.shape.join() === [batch, seq, kvHeads, headDim].join() &&
    heads % kvHeads === 0;
  const { forest, window } = attributes;
  if (!fits || (forest !== undefined && (batch !== 1 || forest.positions.shape[0] !== seq || window !== undefined)))
    throw new ShapeError(`attention of ${describe(q)} over ${describe(k)} and ${describe(v)} does not fit`);
  const mixed =
    g.backend.kernels === undefined
      ? composed(g, q, k, v, attributes)
      : forest === undefined
        ? fusedAttention(g, q, k, v, attributes)
        : forestAttention(g, q, k, v, forest.visibility, attributes);
  return reshape(g, mixed, { to: [batch * seq, heads * headDim] });
}

/** Bit 0 of the kernel's flags: products of bf16. The window is above. */
const settings = (g: Graph, { scale, window }: AttentionAttributes) => ({
  flags: (g.computeType === "bf16" ? 1 : 0) | ((window ?? 0) << 1),
  value: scale,
});

/** Scores exist for a block of queries at a time. -> [batch, seq, heads, headDim] */
const fusedAttention: Op<[q: Tensor, k: Tensor, v: Tensor], AttentionAttributes> = defineOp("attention", 3, {
  shape: ([q]) => q.shape,
  kernel: (_, attributes, g) => ({ name: "attention", ...settings(g, attributes) }),
  vjp: (g, dy, { inputs: [q, k, v], attributes }) => {
    let all: Tensor | undefined;
    const gradientAt = (offset: number, like: Tensor) => ({
      value: () => {
        all ??= fusedAttentionBack(g, dy, q, k, v, attributes);
        return part(g, all, { offset, to: like.shape });
      },
    });
    const [queries, keys] = [elementCount(q.shape), elementCount(k.shape)];
    return [gradientAt(0, q), gradientAt(queries, k), gradientAt(queries + keys, v)];
  },
});

const forestAttention: Op<[q: Tensor, k: Tensor, v: Tensor, ends: Tensor], AttentionAttributes> = defineOp(
  "forestAttention",
  4,
  {
    accepts: [undefined, undefined, undefined, INDICES],
    shape: ([q]) => q.shape,
    kernel: (_, attributes, g) => ({ name: "attention", ...settings(g, attributes) }),
  },
);

/** The gradients of q, k and v, one after the other. */
const fusedAttentionBack: Op<[dy: Tensor, q: Tensor, k: Tensor, v: Tensor], AttentionAttributes> = defineOp(
  "attentionBack",
  4,
  {
    shape: ([, q, k]) => [elementCount(q.shape) + 2 * elementCount(k.shape)],
    kernel: (_, attributes, g) => ({ name: "attention_back", ...settings(g, attributes) }),
  },
);

/** From other ops. The heads of a group are folded into the sequence axis, so keys and values are never repeated. */
function composed(g: Graph, q: Tensor, k: Tensor, v: Tensor, { scale, window, forest }: AttentionAttributes): Tensor {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  const kvHeads = k.shape[2] ?? 0;
  const group = heads / kvHeads;
  const inWindow = (i: number, j: number) => window === undefined || j > i - window;
  const mask = forest?.visibility ?? g.constant(`mask ${seq} ${window}`, "f32", [seq, seq], maskOf(inWindow, seq));
  const headsFirst = (x: Tensor) => permute(g, x, { order: [0, 2, 1, 3] });
  const folded = reshape(g, headsFirst(q), { to: [batch, kvHeads, group * seq, headDim] });
  const scores = matmul(g, folded, headsFirst(k)); // [batch, kvHeads, group x seq, seq]
  const unfolded = reshape(g, scores, { to: [batch, heads, seq, seq] });
  const probabilities = maskedSoftmax(g, unfolded, mask, { scale });
  const refolded = reshape(g, probabilities, { to: [batch, kvHeads, group * seq, seq] });
  const mixed = matmul(g, refolded, permute(g, v, { order: [0, 2, 3, 1] })); // [batch, kvHeads, group x seq, headDim]
  const perHead = reshape(g, mixed, { to: [batch, heads, seq, headDim] });
  return headsFirst(perHead); // [batch, seq, heads, headDim]
}

/** Additive attention mask [seq, seq]: 0 where query i may read key j, itself or one before it, -infinity elsewhere. */
function maskOf(reads: (query: number, key: number) => boolean, seq: number): Float32Array {
  const mask = new Float32Array(seq * seq).fill(-Infinity);
  for (let i = 0; i < seq; i++) for (let j = 0; j <= i; j++) if (reads(i, j)) mask[i * seq + j] = 0;
  return mask;
}
