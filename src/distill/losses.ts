import { elementCount, type Graph, ops, type Tensor } from "../tensor/index.js";

/** The value of a tensor, with no gradient flowing back through it. */
export const stopGradient = (tensor: Tensor): Tensor => ({ ...tensor, requiresGrad: false });

/** The teacher's k most probable tokens at each of n positions. */
export interface TopKTargets {
  /** i32 [n · k]: row · vocab + token id, with rows counted from the first one of the loss. */
  readonly indices: Tensor;
  /** Log-probabilities, [n · k]. */
  readonly logProbabilities: Tensor;
  readonly k: number;
}

/** Added to the probability outside the k tokens, of both models, so that its logarithm is finite when rounding makes it 0. */
const REST_FLOOR = 1e-6;

/**
 * KL(p ‖ q) over k + 1 outcomes: the teacher's k most probable tokens, and all others together, summed over rows and times T².
 * By the data-processing inequality, a lower bound of the whole KL divergence.
 * @param studentLogits [rows, vocab]
 */
export function topKDivergence(g: Graph, studentLogits: Tensor, targets: TopKTargets, temperature: number): Tensor {
  const shape = [elementCount(targets.indices.shape) / targets.k, targets.k];
  const rest = (probabilities: Tensor) =>
    ops.scale(g, ops.sumLast(g, probabilities), { factor: -1, bias: 1 + REST_FLOOR });
  const logP = ops.reshape(g, targets.logProbabilities, { to: shape });
  const p = ops.exp(g, logP);
  const logProbabilities = ops.logSoftmax(g, studentLogits, { scale: 1 / temperature });
  const logQ = ops.reshape(g, ops.gather(g, logProbabilities, targets.indices), { to: shape });
  const inside = ops.sum(g, ops.mul(g, ops.sub(g, logQ, logP), p)); // -Σ p (log p - log q)
  const restP = rest(p);
  const logRestQ = ops.log(g, rest(ops.exp(g, logQ)));
  const outside = ops.sum(g, ops.mul(g, ops.sub(g, logRestQ, ops.log(g, restP)), restP));
  return ops.scale(g, ops.add(g, inside, outside), { factor: -(temperature ** 2) });
}
