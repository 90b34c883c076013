import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Op } from "../op.js";
import { describe, elementCount, type Shape, sizeAt, type Tensor } from "../tensor.js";
import { softCap as limited } from "./activations.js";
import { add, scale as scaled, sumRows } from "./elementwise.js";
import { type Forest, forestMask, maskOf } from "./forest.js";
import { matmul } from "./matmul.js";
import { concatLast, part, permute, reshape, splitLast, zeros } from "./shape.js";
import { maskedSoftmax } from "./transformer.js";

export interface AttentionAttributes {
  /** Multiplies the scores, usually 1/√headDim. */
  readonly scale: number;
  /** How many positions a query reads, its own included; all before it by default. */
  readonly window?: number | undefined;
  /** Where the one sequence is a forest. On devices with kernels it has no gradient. */
  readonly forest?: Forest | undefined;
  /** Limits the scaled scores s smoothly, to softCap · tanh(s / softCap) (Gemma 2). */
  readonly softCap?: number | undefined;
  /** One more logit per head, that of reading nothing: it counts in the softmax's denominator only (gpt-oss). [heads] */
  readonly sinks?: Tensor | undefined;
}

/**
 * Causal scaled dot-product attention with grouped queries (Ainslie et al. 2023): query head h reads key-value head
 * ⌊h · kvHeads / heads⌋. q: [batch, seq, heads, headDim]; k, v: [batch, seq, kvHeads, headDim] -> [batch · seq, heads · headDim]
 */
export function attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, attributes: AttentionAttributes): Tensor {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  checkAttention(q, k, v, attributes);
  const { window } = attributes;
  const effective = { ...attributes, window: window === undefined || window >= seq ? undefined : window };
  const mixed = g.backend.kernels === undefined ? composed(g, q, k, v, effective) : fused(g, q, k, v, effective);
  return reshape(g, mixed, { to: [batch * seq, heads * headDim] });
}

/** @throws ShapeError when something does not fit */
function checkAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { forest, sinks, window, softCap }: AttentionAttributes,
): void {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  const kvHeads = k.shape[2] ?? 0;
  const fits =
    q.shape.length === 4 &&
    k.shape.join() === v.shape.join() &&
    k.shape.join() === [batch, seq, kvHeads, headDim].join() &&
    heads % kvHeads === 0;
  if (!fits || (forest !== undefined && (batch !== 1 || forest.positions.shape.join() !== `${seq}`)))
    throw new ShapeError(`attention of ${describe(q)} over ${describe(k)} and ${describe(v)} does not fit`);
  if (sinks !== undefined && sinks.shape.join() !== `${heads}`)
    throw new ShapeError(`${describe(sinks)} are not the sinks of the heads of ${describe(q)}`);
  if (window !== undefined && !(Number.isSafeInteger(window) && window > 0))
    throw new ShapeError(`attention of ${describe(q)} in a window of ${window} positions is not possible`);
  if (softCap !== undefined && !(softCap > 0 && softCap < Number.POSITIVE_INFINITY))
    throw new ShapeError(`attention scores of ${describe(q)} cannot be limited to ±${softCap}`);
}

/** Bits of the kernels' flags, which say which sources follow q, k and v, in this order. The window is above. */
const FLAG = { bf16: 1, forest: 2, softCap: 4, sinks: 8 };
const WINDOW_SHIFT = 4;

/** What the flags have room for: longer than any sequence that can be computed. */
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

/** Scores exist for a block of queries at a time. -> [batch, seq, heads, headDim] */
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
          let all: Tensor | undefined;
          const gradientAt = (offset: number, to: Shape) => () => {
            all ??= fusedAttentionBack(others.length)(g, dy, q, k, v, ...others, attributes);
            return part(g, all, { offset, to });
          };
          const [batch = 1, , heads = 1] = q.shape;
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

/** The gradients of q, k and v, one after the other, and where there are sinks theirs for each sequence, [batch, heads]. */
const fusedAttentionBack = (more: number): Op<readonly [dy: Tensor, ...Sources], AttentionAttributes> =>
  defineOp<readonly [dy: Tensor, ...Sources], AttentionAttributes>("attentionBack", 4 + more, {
    shape: ([, q, k], { sinks }) => {
      const [batch = 1, , heads = 1] = q.shape;
      return [elementCount(q.shape) + 2 * elementCount(k.shape) + (sinks === undefined ? 0 : batch * heads)];
    },
    kernel: (_, attributes, g) => ({ name: "attention_back", ...settings(g, attributes) }),
  });

/** From other ops. The heads of a group are folded into the sequence axis, so keys and values are never repeated. */
function composed(g: Graph, q: Tensor, k: Tensor, v: Tensor, attributes: AttentionAttributes): Tensor {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  const kvHeads = sizeAt(k, 2);
  const group = heads / kvHeads;
  const headsFirst = (x: Tensor) => permute(g, x, { order: [0, 2, 1, 3] });
  const folded = reshape(g, headsFirst(q), { to: [batch, kvHeads, group * seq, headDim] });
  const scores = matmul(g, folded, headsFirst(k)); // [batch, kvHeads, group x seq, seq]
  const unfolded = reshape(g, scores, { to: [batch, heads, seq, seq] });
  const probabilities = probabilitiesOf(g, unfolded, attributes);
  const refolded = reshape(g, probabilities, { to: [batch, kvHeads, group * seq, seq] });
  const mixed = matmul(g, refolded, permute(g, v, { order: [0, 2, 3, 1] })); // [batch, kvHeads, group x seq, headDim]
  const perHead = reshape(g, mixed, { to: [batch, heads, seq, headDim] });
  return headsFirst(perHead); // [batch, seq, heads, headDim]
}

/** scores, the result: [batch, heads, seq, seq] */
function probabilitiesOf(
  g: Graph,
  scores: Tensor,
  { scale, window, forest, softCap, sinks }: AttentionAttributes,
): Tensor {
  const [batch = 1, heads = 1, seq = 1] = scores.shape;
  const inWindow = (i: number, j: number) => window === undefined || j > i - window;
  const mask =
    forest === undefined
      ? g.constant(`mask ${seq} ${window}`, "f32", [seq, seq], maskOf(inWindow, seq))
      : forestMask(g, forest, window);
  if (softCap === undefined && sinks === undefined) return maskedSoftmax(g, scores, mask, { scale });
  const final = scaled(g, scores, { factor: scale });
  const capped = softCap === undefined ? final : limited(g, final, { cap: softCap });
  if (sinks === undefined) return maskedSoftmax(g, capped, mask, { scale: 1 });
  // one more key, which each query sees and whose value is nothing
  const column = add(g, zeros(g, [batch, heads, seq, 1]), reshape(g, sinks, { to: [heads, 1, 1] }));
  const widened = g.memo(mask, "with sinks", () => concatLast(g, [mask, zeros(g, [seq, 1])]));
  const all = maskedSoftmax(g, concatLast(g, [capped, column]), widened, { scale: 1 });
  return splitLast(g, all, [seq, 1])[0] as Tensor;
}
