import { DTYPE_ID } from "../../ggml/dtype.js";
import type { Pointer } from "../../ggml/functions.js";
import type { Graph } from "../graph.js";
import { defineOp, type Native, type Op } from "../op.js";
import { nativeSizes, type Shape, sizesOf, type Tensor } from "../tensor.js";
import { PRECISION_F32 } from "./elementwise.js";
import type { RowRange } from "./head.js";
import { cast } from "./shape.js";

interface FlashAttributes {
  readonly scale: number;
  readonly softCap?: number | undefined;
  /** The queries of each sequence; they read the keys up to their end. */
  readonly range: RowRange;
}

export interface AttentionInputs {
  /** [batch, seq, heads, headDim] */
  readonly q: Tensor;
  /** [batch, seq, kvHeads, headDim] */
  readonly k: Tensor;
  /** [batch, seq, kvHeads, headDim] */
  readonly v: Tensor;
  /** [heads] */
  readonly sinks?: Tensor | undefined;
}

type Sources = readonly [q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ...sinks: Tensor[]];

const HALF_BYTES = 2;

/** Positions [from, to) of [batch, seq, heads, headDim], heads first: a view. */
function headsFirst({ f, context }: Native, { handle, shape }: Tensor, { from, to }: RowRange, bytes: number): Pointer {
  const [size, heads, seq, batch] = nativeSizes(shape);
  const strides = [bytes * size, bytes * size * heads, bytes * size * heads * seq] as const;
  const view = f.ggml_view_4d(context, handle, size, heads, to - from, batch, ...strides, from * strides[1]);
  return f.ggml_permute(context, view, 0, 2, 1, 3);
}

function build(
  native: Native,
  [q, k, v, mask, sinks]: Sources,
  { scale, softCap = 0, range }: FlashAttributes,
): Pointer {
  const { f, context } = native;
  const [keys, values] = [k, v].map((one) => headsFirst(native, one, { from: 0, to: range.to }, HALF_BYTES));
  const queries = headsFirst(native, q, range, Float32Array.BYTES_PER_ELEMENT);
  const node = f.ggml_flash_attn_ext(
    context,
    queries,
    keys as Pointer,
    values as Pointer,
    mask.handle,
    scale,
    0,
    softCap,
  );
  f.ggml_flash_attn_ext_set_prec(node, PRECISION_F32);
  if (sinks !== undefined) f.ggml_flash_attn_ext_add_sinks(node, sinks.handle);
  return node;
}

const flash = (sinks: number): Op<Sources, FlashAttributes> =>
  defineOp<Sources, FlashAttributes>("flashAttention", 4 + sinks, {
    accepts: [undefined, ["f16"], ["f16"], ["f16"]],
    shape: ([q], { range }) => {
      const [batch, , heads, headDim] = sizesOf(q, 4);
      return [batch, range.to - range.from, heads, headDim];
    },
    build,
  });

/**
 * Attention by ggml's kernel, which holds the scores of a few queries and keys at a time (Dao 2023, FlashAttention-2). Keys, values and the
 * mask are rounded to f16; sums are f32. No gradient.
 * @param mask [queries, keys up to their end], added to the scores
 * @returns [batch, queries, heads, headDim]
 */
export function flashAttention(
  g: Graph,
  { q, k, v, sinks }: AttentionInputs,
  mask: Tensor,
  attributes: FlashAttributes,
): Tensor {
  const half = (x: Tensor) => g.memo(x, "f16", () => g.withoutGradient(() => cast(g, x, { to: "f16" })));
  const more = sinks === undefined ? [] : [sinks];
  return g.withoutGradient(() => flash(more.length)(g, q, half(k), half(v), half(mask), ...more, attributes));
}

/**
 * Whether a device has such a kernel for these shapes, and a graph may use it: it computes in 16 bits anyway. On a processor other ops
 * are faster.
 */
export function canFlash(g: Graph, { q, k, sinks }: AttentionInputs): boolean {
  if (g.computeType === "f32" || g.backend.device.kind === "cpu") return false;
  const native = { f: g.functions, context: g.nativeContext() };
  const [, seq, heads] = sizesOf(q, 4);
  const like = (shape: Shape, dtype: "f32" | "f16"): Tensor => ({
    ...q,
    shape,
    dtype,
    handle: native.f.ggml_new_tensor_4d(native.context, DTYPE_ID[dtype], ...nativeSizes(shape)),
  });
  const keys = like(k.shape, "f16");
  const sources = [
    like(q.shape, "f32"),
    keys,
    keys,
    like([seq, seq], "f16"),
    ...(sinks === undefined ? [] : [like([heads], "f32")]),
  ] as const;
  return g.backend.supports(build(native, sources, { scale: 1, range: { from: 0, to: seq } }));
}
