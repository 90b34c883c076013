import { ShapeError } from "../../system/errors.js";
import { once } from "../gradient.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Op } from "../op.js";
import { describe, elementCount, type Shape, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { type AttentionAttributes, composedAttention } from "./composed-attention.js";
import { sumRows } from "./elementwise.js";
import { part, reshape } from "./shape.js";

/**
 * Causal scaled dot-product attention with grouped queries (Ainslie et al. 2023): query head h reads key-value head
 * ⌊h · kvHeads / heads⌋. q: [batch, seq, heads, headDim]; k, v: [batch, seq, kvHeads, headDim] -> [batch · seq, heads · headDim]
 * @throws ShapeError when shapes or settings do not fit
 */
export function attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, attributes: AttentionAttributes): Tensor {
  checkAttention(q, k, v, attributes);
  const [batch, seq, heads, headDim] = sizesOf(q, 4);
  const { window } = attributes;
  const effective = { ...attributes, window: window === undefined || window >= seq ? undefined : window };
  const mixed =
    g.backend.kernels === undefined ? composedAttention(g, q, k, v, effective) : fused(g, q, k, v, effective);
  return reshape(g, mixed, { to: [batch * seq, heads * headDim] });
}

/** @throws ShapeError when shapes or settings do not fit */
function checkAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { forest, sinks, window, softCap }: AttentionAttributes,
): void {
  const [batch, seq, heads, headDim] = sizesOf(q, 4);
  const kvHeads = sizesOf(k, 4)[2];
  const fits =
    sameShape(k.shape, v.shape) && sameShape(k.shape, [batch, seq, kvHeads, headDim]) && heads % kvHeads === 0;
  if (!fits || (forest !== undefined && (batch !== 1 || !sameShape(forest.positions.shape, [seq]))))
    throw new ShapeError(`attention of ${describe(q)} over ${describe(k)} and ${describe(v)} does not fit`);
  if (sinks !== undefined && !sameShape(sinks.shape, [heads]))
    throw new ShapeError(`${describe(sinks)} are not the sinks of the heads of ${describe(q)}`);
  if (window !== undefined && !(Number.isSafeInteger(window) && window > 0))
    throw new ShapeError(
      `attention of ${describe(q)} in a window of ${window} positions is not possible: a positive integer is needed`,
    );
  if (softCap !== undefined && !(softCap > 0 && softCap < Number.POSITIVE_INFINITY))
    throw new ShapeError(
      `attention scores of ${describe(q)} cannot be limited to ±${softCap}: a positive number is needed`,
    );
}

/** Bits of the kernels' flags: all but the first say which sources follow q, k and v, in this order. Higher bits hold the window. */
const FLAG = { bf16: 1, forest: 2, softCap: 4, sinks: 8 };
const WINDOW_SHIFT = 4;

/** The longest window that fits into the flags: longer than any sequence that can be computed. */
const LONGEST_WINDOW = 2 ** 27 - 1;

const settings = (g: Graph, { scale, window = 0, forest, softCap, sinks }: AttentionAttributes) => ({
  flags:
    (g.computeType === "bf16" ? FLAG.bf16 : 0) |
    (forest === undefined ? 0 : FLAG.forest) |
    (softCap === undefined ? 0 : FLAG.softCap) |
    (sinks === undefined ? 0 : FLAG.sinks) |
    (Math.min(window, LONGEST_WINDOW) << WINDOW_SHIFT),
  value: scale,
});

/** Attention by our kernel, which holds scores for one block of queries at a time. -> [batch, seq, heads, headDim] */
function fused(g: Graph, q: Tensor, k: Tensor, v: Tensor, attributes: AttentionAttributes): Tensor {
  const { forest, softCap, sinks } = attributes;
  const more = [
    ...(forest === undefined ? [] : [forest.visibility, forest.positions]),
    ...(softCap === undefined ? [] : [g.constant(`soft cap ${softCap}`, "f32", [1], Float32Array.of(softCap))]),
    ...(sinks === undefined ? [] : [sinks]),
  ];
  return fusedAttention(more.length, forest !== undefined)(g, q, k, v, ...more, attributes);
}

type Sources = readonly [q: Tensor, k: Tensor, v: Tensor, ...more: Tensor[]];

const fusedAttention = (more: number, isForest: boolean): Op<Sources, AttentionAttributes> =>
  defineOp<Sources, AttentionAttributes>("attention", 3 + more, {
    accepts: isForest ? [undefined, undefined, undefined, INDICES, INDICES] : [],
    shape: ([q]) => q.shape,
    kernel: (_, attributes, g) => ({ name: "attention", ...settings(g, attributes) }),
    vjp: isForest
      ? undefined
      : (g, dy, { inputs: [q, k, v, ...others], attributes }) => {
          const all = once(() => fusedAttentionBack(others.length)(g, dy, q, k, v, ...others, attributes));
          const gradientAt = (offset: number, to: Shape) => () => part(g, all(), { offset, to });
          const [batch, , heads] = sizesOf(q, 4);
          const [queries, keys] = [elementCount(q.shape), elementCount(k.shape)];
          const ofSinks = gradientAt(queries + 2 * keys, [batch, heads]);
          return [
            { value: gradientAt(0, q.shape) },
            { value: gradientAt(queries, k.shape) },
            { value: gradientAt(queries + keys, v.shape) },
            ...(attributes.softCap === undefined ? [] : [null]),
            ...(attributes.sinks === undefined ? [] : [() => reshape(g, sumRows(g, ofSinks()), { to: [heads] })]),
          ];
        },
  });

/** The gradients of q, k and v, concatenated, and with sinks then theirs for each sequence, [batch, heads]. */
const fusedAttentionBack = (more: number): Op<readonly [dy: Tensor, ...Sources], AttentionAttributes> =>
  defineOp<readonly [dy: Tensor, ...Sources], AttentionAttributes>("attentionBack", 4 + more, {
    shape: ([, q, k], { sinks }) => {
      const [batch, , heads] = sizesOf(q, 4);
      return [elementCount(q.shape) + 2 * elementCount(k.shape) + (sinks === undefined ? 0 : batch * heads)];
    },
    kernel: (_, attributes, g) => ({ name: "attention_back", ...settings(g, attributes) }),
  });
