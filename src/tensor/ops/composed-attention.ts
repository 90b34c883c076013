import { elementAt } from "../../system/arrays.js";
import { backpropagate, GradientSums } from "../autodiff.js";
import { once } from "../gradient.js";
import type { Graph } from "../graph.js";
import { sizesOf, type Tensor } from "../tensor.js";
import { softCap as limit } from "./activations.js";
import { add, scale as scaleBy } from "./elementwise.js";
import { type AttentionInputs, canFlash, flashAttention } from "./flash-attention.js";
import { type Forest, forestMask, maskOf } from "./forest.js";
import type { RowRange } from "./head.js";
import { matmul } from "./matmul.js";
import {
  columns,
  concatLast,
  concatPositions,
  firstColumns,
  padLast,
  padPositions,
  permute,
  positionsOf,
  reshape,
  rowsOf,
  splitLast,
  zeros,
} from "./shape.js";
import { maskedSoftmax } from "./transformer.js";

/** Settings of attention. */
export interface AttentionAttributes {
  /** Multiplies the scores, usually 1/√headDim. */
  readonly scale: number;
  /** How many positions a query reads, including its own; all positions up to its own by default. */
  readonly window?: number | undefined;
  /** Set when the one sequence is a forest, which has no gradient on devices with kernels. */
  readonly forest?: Forest | undefined;
  /** Limits the scaled scores s smoothly, to softCap · tanh(s / softCap) (Gemma 2). */
  readonly softCap?: number | undefined;
  /** A logit per head, [heads], for reading nothing: it only adds to the softmax's denominator (gpt-oss). */
  readonly sinks?: Tensor | undefined;
}

/** Scores of up to so many bytes are computed at once, and probabilities kept for the gradient. */
const KEPT_BYTES = 16 << 20;
/** Bytes of the scores of a block of queries: what every device of Vulkan lets a kernel read. */
const BLOCK_BYTES = 128 << 20;
/** Blocks are multiples of this where so many rows fit: products of bf16 sum over as many. */
const ROW_UNIT = 32;

/** How many queries of each sequence are in a block. @param copies of an array of all pairs of positions that there would be */
function rowsPerBlock(copies: number, seq: number): number {
  const rowBytes = 4 * copies * seq;
  if (rowBytes * seq <= KEPT_BYTES) return seq;
  const fitting = Math.floor(BLOCK_BYTES / rowBytes);
  if (fitting < ROW_UNIT) return Math.max(1, fitting);
  // at least two: a block leaves out the keys after it
  const blocks = Math.max(2, Math.ceil(seq / (fitting - (fitting % ROW_UNIT))));
  return ROW_UNIT * Math.ceil(seq / blocks / ROW_UNIT);
}

/** Queries, keys and values, heads first. */
interface Heads {
  /** [batch, heads, queries, headDim] */
  readonly q: Tensor;
  /** [batch, kvHeads, keys, headDim] */
  readonly k: Tensor;
  /** Transposed: [batch, kvHeads, headDim, keys] */
  readonly v: Tensor;
  /** [heads] */
  readonly sinks?: Tensor | undefined;
}

/**
 * Attention from other ops, for devices without kernels of ours. Long sequences take a block of queries after the other, with the keys up to
 * its end, and the gradient computes each block's probabilities again: no array of all pairs of positions exists. Where no probabilities
 * are kept for a gradient, ggml's own kernel computes the blocks on devices that have one.
 * q: [batch, seq, heads, headDim]; k, v: [batch, seq, kvHeads, headDim] -> [batch, seq, heads, headDim]
 * @param attributes with the queries of each sequence in a block; as many as are fast by default
 */
export function composedAttention(
  g: Graph,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { rows: given, ...attributes }: AttentionAttributes & { readonly rows?: number | undefined },
): Tensor {
  const [batch, seq, queryHeads] = sizesOf(q, 4);
  const rows = given ?? rowsPerBlock(batch * queryHeads, seq);
  const inputs = { q, k, v, sinks: attributes.sinks };
  const hasGradient = g.isRecording && Object.values(inputs).some((input) => input?.requiresGrad);
  const isInBlocks = rows < seq;
  const canUse = (isInBlocks || !hasGradient) && canFlash(g, inputs);
  const flash = () => flashInBlocks(g, inputs, attributes, given ?? rowsPerBlock(1, seq));
  if (canUse && !hasGradient) return flash();
  const heads = { ...inputs, q: headsFirst(g, q), k: headsFirst(g, k), v: permute(g, v, { order: [0, 2, 3, 1] }) };
  if (isInBlocks) return inBlocks(g, heads, attributes, rows, canUse ? flash : undefined);
  return headsFirst(g, attend(g, heads, masksOf(g, attributes, seq, seq)({ from: 0, to: seq }), attributes));
}

/** [batch, positions, heads, headDim] and [batch, heads, positions, headDim], from one to the other. */
const headsFirst = (g: Graph, x: Tensor): Tensor => permute(g, x, { order: [0, 2, 1, 3] });

const blocksOf = (seq: number, rows: number): RowRange[] =>
  Array.from({ length: Math.ceil(seq / rows) }, (_, i) => ({ from: i * rows, to: Math.min(seq, (i + 1) * rows) }));

/** Blocks by ggml's kernel. No gradient. -> [batch, seq, heads, headDim] */
function flashInBlocks(g: Graph, inputs: AttentionInputs, attributes: AttentionAttributes, rows: number): Tensor {
  const [batch, seq, heads, headDim] = sizesOf(inputs.q, 4);
  const masks = masksOf(g, attributes, seq, Math.min(rows, seq));
  return g.withoutGradient(() => {
    const blocks = blocksOf(seq, rows).map((range) => {
      const mixed = flashAttention(g, inputs, masks(range), { ...attributes, range });
      return reshape(g, mixed, { to: [batch, range.to - range.from, heads * headDim] });
    });
    return reshape(g, concatPositions(g, blocks), { to: [batch, seq, heads, headDim] });
  });
}

/** @param flash computes the result where ggml has a kernel for it */
function inBlocks(
  g: Graph,
  all: Heads,
  attributes: AttentionAttributes,
  rows: number,
  flash: (() => Tensor) | undefined,
): Tensor {
  const [, , seq] = sizesOf(all.q, 4);
  const masks = masksOf(g, attributes, seq, rows);
  const ranges = blocksOf(seq, rows);
  const block = (range: RowRange): Heads => ({
    q: positionsOf(g, all.q, range),
    k: positionsOf(g, all.k, { from: 0, to: range.to }),
    v: firstColumns(g, all.v, range.to),
    sinks: all.sinks,
  });
  const attended = () => {
    const blocks = ranges.map((range) => attend(g, block(range), masks(range), attributes));
    return headsFirst(g, concatPositions(g, blocks));
  };
  const mixed = g.withoutGradient(flash ?? attended);
  const inputs = [all.q, all.k, all.v, ...(all.sinks === undefined ? [] : [all.sinks])];
  const output = { ...mixed, requiresGrad: g.isRecording && inputs.some(({ requiresGrad }) => requiresGrad) };
  g.record({
    output,
    inputs,
    vjp: (dy) => {
      const gradients = once(() => {
        const dyOf = headsFirst(g, dy);
        const ofQueries: Tensor[] = [];
        const sums = new GradientSums();
        const addTo = (input: Tensor, term: Tensor | undefined) => {
          if (term !== undefined) sums.add(g, input, { value: () => term, addTo: (sum) => add(g, sum, term) });
        };
        // the last block first: its keys are all
        for (const range of ranges.toReversed()) {
          const leaf = (x: Tensor): Tensor => ({ ...x, requiresGrad: true });
          const { q, k, v, sinks } = block(range);
          const leaves = { q: leaf(q), k: leaf(k), v: leaf(v), sinks: sinks === undefined ? undefined : leaf(sinks) };
          const again = g.taped(() => attend(g, leaves, masks(range), attributes));
          const own = new GradientSums();
          own.set(again.value, positionsOf(g, dyOf, range));
          backpropagate(g, again.tape, own);
          const [dq, dk, dv] = [leaves.q, leaves.k, leaves.v].map((one) => own.get(one));
          if (dq !== undefined) ofQueries.unshift(dq);
          addTo(all.k, dk && padPositions(g, dk, { to: seq }));
          addTo(all.v, dv && padLast(g, dv, { to: seq }));
          if (all.sinks !== undefined && leaves.sinks !== undefined) addTo(all.sinks, own.get(leaves.sinks));
        }
        sums.set(all.q, concatPositions(g, ofQueries));
        return sums;
      });
      return inputs.map((input) => () => gradients().get(input) as Tensor);
    },
  });
  return output;
}

/** One block. -> [batch, heads, queries, headDim]. The heads of a group are folded into the queries, so keys and values are not repeated. */
function attend(g: Graph, { q, k, v, sinks }: Heads, mask: Tensor, attributes: AttentionAttributes): Tensor {
  const [batch, heads, queries, headDim] = sizesOf(q, 4);
  const [, kvHeads, keys] = sizesOf(k, 4);
  const folded = [batch, kvHeads, (heads / kvHeads) * queries] as const;
  const scores = matmul(g, reshape(g, q, { to: [...folded, headDim] }), k);
  const perHead = reshape(g, scores, { to: [batch, heads, queries, keys] });
  const probabilities = probabilitiesOf(g, perHead, mask, { ...attributes, sinks });
  const mixed = matmul(g, reshape(g, probabilities, { to: [...folded, keys] }), v);
  return reshape(g, mixed, { to: [batch, heads, queries, headDim] });
}

/** The additive masks of blocks, [queries, keys up to their end]. */
function masksOf(
  g: Graph,
  { window, forest }: AttentionAttributes,
  seq: number,
  rows: number,
): (range: RowRange) => Tensor {
  if (forest !== undefined) {
    const whole = forestMask(g, forest, window);
    return ({ from, to }) => (to - from === seq ? whole : firstColumns(g, rowsOf(g, whole, { from, to }), to));
  }
  // what a query reads depends on how far a key is before it: every block's mask is a part of the last one's
  const last = (Math.ceil(seq / rows) - 1) * rows;
  const reads = (query: number, key: number) =>
    key - last <= query && (window === undefined || key - last > query - window);
  const keys = last + rows;
  const whole = g.constant(`mask ${rows} ${keys} ${window}`, "f32", [rows, keys], () => maskOf(reads, rows, keys));
  return ({ from, to }) => {
    if (to === keys) return whole;
    return g.memo(whole, `from ${from}`, () =>
      g.withoutGradient(() =>
        columns(g, rowsOf(g, whole, { from: 0, to: to - from }), { from: last - from, size: to }),
      ),
    );
  };
}

/** The softmax of masked scores. scores: [batch, heads, queries, keys] -> the same shape */
function probabilitiesOf(
  g: Graph,
  scores: Tensor,
  mask: Tensor,
  { scale, softCap, sinks }: AttentionAttributes,
): Tensor {
  const [batch, heads, queries, keys] = sizesOf(scores, 4);
  if (softCap === undefined && sinks === undefined) return maskedSoftmax(g, scores, mask, { scale });
  const scaled = scaleBy(g, scores, { factor: scale });
  const capped = softCap === undefined ? scaled : limit(g, scaled, { cap: softCap });
  if (sinks === undefined) return maskedSoftmax(g, capped, mask, { scale: 1 });
  // one more key, which every query sees and whose value is zero
  const column = add(g, zeros(g, [batch, heads, queries, 1]), reshape(g, sinks, { to: [heads, 1, 1] }));
  const widened = g.memo(mask, "with sinks", () => concatLast(g, [mask, zeros(g, [queries, 1])]));
  const all = maskedSoftmax(g, concatLast(g, [capped, column]), widened, { scale: 1 });
  return elementAt(splitLast(g, all, [keys, 1]), 0);
}
