import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { describe, type Tensor } from "../tensor.js";
import { matmul } from "./matmul.js";
import { permute, reshape } from "./shape.js";
import { maskedSoftmax } from "./transformer.js";

/**
 * Scaled dot-product attention with grouped queries (Ainslie et al. 2023): query head h reads key-value head
 * ⌊h · kvHeads / heads⌋. The heads of a group are folded into the sequence axis, so keys and values are never repeated.
 * q: [batch, seq, heads, headDim]; k, v: [batch, seq, kvHeads, headDim]; mask: [seq, seq] -> [batch · seq, heads · headDim]
 */
export function attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: number): Tensor {
  const [batch = 0, seq = 0, heads = 0, headDim = 0] = q.shape;
  const kvHeads = k.shape[2] ?? 0;
  if (q.shape.length !== 4 || k.shape.join() !== v.shape.join() || heads % kvHeads !== 0)
    throw new ShapeError(`attention of ${describe(q)} over ${describe(k)} and ${describe(v)} does not fit`);
  const group = heads / kvHeads;
  const headsFirst = (x: Tensor) => permute(g, x, { order: [0, 2, 1, 3] });
  const folded = reshape(g, headsFirst(q), { to: [batch, kvHeads, group * seq, headDim] });
  const scores = matmul(g, folded, headsFirst(k)); // [batch, kvHeads, group x seq, seq]
  const unfolded = reshape(g, scores, { to: [batch, heads, seq, seq] });
  const probabilities = maskedSoftmax(g, unfolded, mask, { scale });
  const refolded = reshape(g, probabilities, { to: [batch, kvHeads, group * seq, seq] });
  const mixed = matmul(g, refolded, permute(g, v, { order: [0, 2, 3, 1] })); // [batch, kvHeads, group x seq, headDim]
  const perHead = reshape(g, mixed, { to: [batch, heads, seq, headDim] });
  return reshape(g, headsFirst(perHead), { to: [batch * seq, heads * headDim] });
}
