import type { Model } from "./architecture.js";
import { shapeOf } from "./dimensions.js";

/**
 * Floating-point operations of one token's forward pass: two for each weight of a matrix it is multiplied by, and two for
 * each product of causal attention, half of the positions being read on average (Kaplan et al. 2020, table 1, with the
 * output head counted unless `head` is false). A training step takes three times as many.
 */
export function forwardFlopsPerToken(model: Model, sequenceLength: number, { head = true } = {}): number {
  const matrices = model.parameters
    .filter(({ axes }) => axes.length === 2)
    .map((spec) => shapeOf(spec, model.sizes).reduce((a, b) => a * b, 1));
  const embedding = (model.sizes.vocab ?? 0) * (model.sizes.hidden ?? 0);
  // the embedding's rows are looked up; multiplied it is as the head only
  const products = matrices.reduce((a, b) => a + b, 0) - embedding * (Number(!model.tiedEmbeddings) + Number(!head));
  const heads = model.headGroups.reduce((sum, group) => sum + (model.sizes[group.heads] ?? 0), 0);
  const attention = heads * (model.sizes.headDim ?? 0) * 2 * (sequenceLength / 2);
  return 2 * (products + attention);
}
