import type { Backend } from "../ggml/device.js";
import { Cholesky, type Matrix } from "../linear-algebra/index.js";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, TensorStore } from "../tensor/index.js";

/** The share of the mean diagonal that is added to the second moments before they are inverted. */
const DAMPING = 0.01;
/** Inputs beyond this share of all are not taken out one after the other: the order among the last ones is that of their losses. */
const MOST_REMOVED = 0.75;
/** Single inputs are taken out by so many at a time, or by a share of all where that is more. */
const [LEAST_AT_ONCE, SHARE_AT_ONCE] = [8, 1 / 512];
/** A score is at least so much larger than the one of the group removed before: order is kept where losses are equal. */
const INCREASE = 1 + 1e-6;

export interface RemovalOptions {
  /** Inputs that are removed together: the channels of a head. 1 by default. */
  readonly groupSize?: number | undefined;
}

/**
 * Scores the inputs of a matrix by optimal brain surgeon (Hassibi & Stork 1992; ZipLM, arXiv 2302.04089, eq. 3 and 4; SlimGPT, arXiv
 * 2412.18110): again and again the inputs whose removal raises the output's squared error least are taken out, with the others'
 * weights changed to make up for them. A group's loss is tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ) with H the damped second moments.
 * @param moments Σ m mᵀ over calibration data, [inputs, inputs]
 * @param weight [outputs, inputs]
 * @returns for each group of inputs the loss of its removal, larger for those removed later
 */
export async function removalLosses(
  backend: Backend,
  moments: Matrix,
  weight: Matrix,
  { groupSize = 1 }: RemovalOptions = {},
): Promise<Float32Array> {
  const groups = moments.rows / groupSize;
  const losses = new Float32Array(groups);
  const elimination = await Elimination.begin(backend, moments, weight, groupSize);
  try {
    let last = 0;
    const atOnce = groupSize === 1 ? Math.max(LEAST_AT_ONCE, Math.round(groups * SHARE_AT_ONCE)) : 1;
    while (elimination.left > groups * (1 - MOST_REMOVED) && elimination.left > atOnce) {
      const current = elimination.losses();
      const least = elimination.remaining.sort((a, b) => elementAt(current, a) - elementAt(current, b) || a - b);
      const removed = least.slice(0, atOnce);
      for (const group of removed) {
        last = Math.max(last * INCREASE, elementAt(current, group));
        losses[group] = last;
      }
      await elimination.remove(removed);
    }
    const current = elimination.losses();
    for (const group of elimination.remaining.sort((a, b) => elementAt(current, a) - elementAt(current, b) || a - b)) {
      last = Math.max(last * INCREASE, elementAt(current, group));
      losses[group] = last;
    }
    return losses;
  } finally {
    elimination.free();
  }
}
