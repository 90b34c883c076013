import type { Backend } from "../ggml/device.js";
import { type Matrix, meanOf } from "../linear-algebra/index.js";
import { Elimination } from "./elimination.js";
import type { Gram } from "./gram.js";

/** The share of the mean diagonal that is added to the second moments before they are inverted. */
const DAMPING = 0.01;
/** This share of the groups is taken out one after the other; the rest is ordered by the losses at the end. */
const SHARE_REMOVED = 0.75;
/** Single inputs are taken out by so many at a time, or by this share of all where it is more. */
const [LEAST_AT_ONCE, SHARE_AT_ONCE] = [8, 1 / 512];
/** A loss is at least so much larger than that of the group removed before, so that the order of removal can be read from it. */
const INCREASE = 1 + 1e-6;

export interface RemovalOptions {
  /** Inputs that are removed together: the channels of a head. 1 by default. */
  readonly groupSize?: number | undefined;
}

/**
 * Scores the inputs of a matrix by optimal brain surgeon (Hassibi & Stork 1992; ZipLM, arXiv 2302.04089, eq. 3 and 4): again and
 * again the inputs whose removal raises the squared error of the outputs least are taken out, and the others' weights make up for
 * them. The loss of a group is tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ), with H the damped second moments. Takes the weight once
 * more and some 100 MB beside the moments.
 * @param moments Σ m mᵀ over calibration data, [inputs, inputs] which are overwritten
 * @param weight [outputs, inputs]
 * @throws CoppiceError when the moments are not finite
 * @returns the loss of each group's removal; groups that are removed later have larger ones. All are 0 where all moments are.
 */
export async function removalLosses(
  backend: Backend,
  moments: Gram,
  weight: Matrix,
  { groupSize = 1 }: RemovalOptions = {},
): Promise<Float32Array> {
  const groups = weight.columns / groupSize;
  const atOnce = groupSize === 1 ? Math.max(LEAST_AT_ONCE, Math.round(groups * SHARE_AT_ONCE)) : 1;
  const losses = new Float32Array(groups);
  const diagonal = moments.diagonal();
  if (diagonal.every((value) => value === 0)) return losses; // inputs that are always zero: all can go
  let last = 0;
  const record = (group: number, loss: number): void => {
    last = Math.max(last * INCREASE, loss);
    losses[group] = last;
  };
  const elimination = await Elimination.begin(moments.sums, DAMPING * meanOf(diagonal), {
    backend,
    weight,
    groupSize,
    atOnce,
  });
  try {
    while (elimination.size > Math.max(atOnce, groups * (1 - SHARE_REMOVED))) {
      const removed = elimination.cheapest(atOnce);
      for (const { group, loss } of removed) record(group, loss);
      await elimination.remove(removed.map(({ group }) => group));
    }
    for (const { group, loss } of elimination.cheapest()) record(group, loss);
    return losses;
  } finally {
    elimination.free();
  }
}
