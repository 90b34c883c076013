import { elementCount, type Graph, ops, type Tensor } from "../tensor/index.js";
import type { TargetTensors } from "./sparse-targets.js";

/** The value of a tensor, with no gradient flowing back through it. */
export const stopGradient = (tensor: Tensor): Tensor => ({ ...tensor, requiresGrad: false });

/** Added to the probability outside the k tokens, of both models, so that its logarithm is finite when rounding makes it 0. */
const REST_FLOOR = 1e-6;

/**
 * KL(p ‖ q) over k + 1 outcomes: the teacher's k most probable tokens, and all others together, summed over rows and times T².
 * By the data-processing inequality, a lower bound of the whole KL divergence.
 * @param studentLogits [rows, vocab]
 * @param targets their values are log-probabilities
 */
export function topKDivergence(g: Graph, studentLogits: Tensor, targets: TargetTensors, temperature: number): Tensor {
  const shape = [elementCount(targets.indices.shape) / targets.slots, targets.slots];
  const rest = (probabilities: Tensor) =>
    ops.scale(g, ops.sumLast(g, probabilities), { factor: -1, bias: 1 + REST_FLOOR });
  const logP = ops.reshape(g, targets.values, { to: shape });
  const p = ops.exp(g, logP);
  const logProbabilities = ops.logSoftmax(g, studentLogits, { scale: 1 / temperature });
  const logQ = ops.reshape(g, ops.gather(g, logProbabilities, targets.indices), { to: shape });
  const inside = ops.sum(g, ops.mul(g, ops.sub(g, logQ, logP), p)); // -Σ p (log p - log q)
  const restP = rest(p);
  const logRestQ = ops.log(g, rest(ops.exp(g, logQ)));
  const outside = ops.sum(g, ops.mul(g, ops.sub(g, logRestQ, ops.log(g, restP)), restP));
  return ops.scale(g, ops.add(g, inside, outside), { factor: -(temperature ** 2) });
}

/**
 * Cross-entropy with samples of the teacher's distribution, -Σ w log q, summed over rows and times T². Where the weights are an unbiased
 * estimate of p, its gradient is one of the gradient of KL(p ‖ q): the two differ by the entropy of p, which the student does not change
 * (arXiv 2503.16870).
 * @param studentLogits [rows, vocab]
 * @param targets their values are weights; an id that has none has the weight 0
 */
export function sampledCrossEntropy(
  g: Graph,
  studentLogits: Tensor,
  targets: TargetTensors,
  temperature: number,
): Tensor {
  const logQ = ops.gather(g, ops.logSoftmax(g, studentLogits, { scale: 1 / temperature }), targets.indices);
  return ops.scale(g, ops.sum(g, ops.mul(g, logQ, targets.values)), { factor: -(temperature ** 2) });
}
