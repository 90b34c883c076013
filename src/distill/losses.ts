import { type Graph, ops, type Tensor } from "../tensor/index.js";

/** The value of a tensor, with no gradient flowing back through it. */
export const stopGradient = (tensor: Tensor): Tensor => ({ ...tensor, requiresGrad: false });

/** The teacher's k most probable tokens at each of n positions. */
export interface TopKTargets {
  /** i32 [n · k]: row · vocab + token id, rows counted in what the loss is given. */
  readonly indices: Tensor;
  /** Log-probabilities, [n · k]. */
  readonly logProbabilities: Tensor;
  readonly k: number;
}

/** Added to the probability outside the k, on both sides, so that its logarithm stays finite when rounding makes it 0. */
const REST = 1e-6;

/**
 * KL(p ‖ q) over k + 1 outcomes: the teacher's k most probable tokens, and all others together, summed over rows and times T².
 * A lower bound of the whole KL (the data-processing inequality).
 */
export function topKDivergence(g: Graph, studentLogits: Tensor, targets: TopKTargets, temperature: number): Tensor {
  const rows = studentLogits.shape[0] ?? 1;
  const shape = [rows, targets.k];
  const rest = (probabilities: Tensor) => ops.scale(g, ops.sumLast(g, probabilities), { factor: -1, bias: 1 + REST });
  const logP = ops.reshape(g, targets.logProbabilities, { to: shape });
  const p = ops.exp(g, logP);
  const logQ = ops.reshape(
    g,
    ops.gather(g, ops.logSoftmax(g, studentLogits, { scale: 1 / temperature }), targets.indices),
    {
      to: shape,
    },
  );
  const inside = ops.sum(g, ops.mul(g, ops.sub(g, logQ, logP), p)); // -Σ p (log p - log q)
  const restP = rest(p);
  const logRestQ = ops.log(g, rest(ops.exp(g, logQ)));
  const outside = ops.sum(g, ops.mul(g, ops.sub(g, logRestQ, ops.log(g, restP)), restP));
  return ops.scale(g, ops.add(g, inside, outside), { factor: -(temperature ** 2) });
}
