import { type Graph, ops, type Tensor } from "../tensor/index.js";

/** How far the student's distribution is from the teacher's. */
export const DIVERGENCES = ["forward-kl", "reverse-kl", "jensen-shannon", "top-k"] as const;
export type Divergence = (typeof DIVERGENCES)[number];

/** Keeps logarithms finite; far below any probability that matters. */
const TINY = 1e-30;

/** The value of a tensor, with no gradient flowing back through it. */
export const stopGradient = (tensor: Tensor): Tensor => ({ ...tensor, requiresGrad: false });

const perRow = (g: Graph, x: Tensor, rows: number, factor: number): Tensor =>
  ops.scale(g, ops.sum(g, x), { factor: factor / rows });

const tempered = (g: Graph, logits: Tensor, temperature: number): Tensor =>
  temperature === 1 ? logits : ops.scale(g, logits, { factor: 1 / temperature });

type DenseLoss = (g: Graph, student: Tensor, teacher: Tensor) => Tensor;

/**
 * Losses on whole distributions, averaged over rows, in nats. student, teacher: logits [n, vocab] -> [1]. The gradient
 * flows to the student only.
 */
const DENSE: Record<Exclude<Divergence, "top-k">, DenseLoss> = {
  /** KL(p ‖ q) = H(p, q) - H(p) (Hinton et al. 2015; arXiv 2407.14679, eq. 5). */
  "forward-kl": (g, student, teacher) => {
    const p = g.withoutGradient(() => ops.softmax(g, teacher, { scale: 1 }));
    const entropy = g.withoutGradient(() => ops.softCrossEntropy(g, teacher, p));
    return ops.sub(g, ops.softCrossEntropy(g, student, p), entropy);
  },
  /** KL(q ‖ p). */
  "reverse-kl": (g, student, teacher) => {
    const logP = g.withoutGradient(() => ops.logSoftmax(g, teacher, { scale: 1 }));
    const logQ = ops.logSoftmax(g, student, { scale: 1 });
    const q = ops.softmax(g, student, { scale: 1 });
    return perRow(g, ops.mul(g, q, ops.sub(g, logQ, logP)), student.shape[0] ?? 1, 1);
  },
  /** ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2 (Lin 1991, eq. 4.1). */
  "jensen-shannon": (g, student, teacher) => {
    const p = g.withoutGradient(() => ops.softmax(g, teacher, { scale: 1 }));
    const logP = g.withoutGradient(() => ops.logSoftmax(g, teacher, { scale: 1 }));
    const q = ops.softmax(g, student, { scale: 1 });
    const logQ = ops.logSoftmax(g, student, { scale: 1 });
    const logM = ops.log(g, ops.scale(g, ops.add(g, q, p), { factor: 0.5, bias: TINY }));
    // p is a constant: written second, it broadcasts against what carries the gradient
    const towardsTeacher = ops.mul(g, ops.scale(g, ops.sub(g, logM, logP), { factor: -1 }), p);
    const towardsStudent = ops.mul(g, q, ops.sub(g, logQ, logM));
    return perRow(g, ops.add(g, towardsTeacher, towardsStudent), student.shape[0] ?? 1, 0.5);
  },
};

/**
 * A divergence of whole distributions at a temperature T, times T² so that gradients keep their size (Hinton et al. 2015,
 * section 2).
 */
export function denseDivergence(
  g: Graph,
  kind: Exclude<Divergence, "top-k">,
  studentLogits: Tensor,
  teacherLogits: Tensor,
  temperature: number,
): Tensor {
  const teacher = g.withoutGradient(() => tempered(g, teacherLogits, temperature));
  const loss = DENSE[kind](g, tempered(g, studentLogits, temperature), teacher);
  return temperature === 1 ? loss : ops.scale(g, loss, { factor: temperature ** 2 });
}

/** The teacher's k most probable tokens at each of n positions. */
export interface TopKTargets {
  /** i32 [n · k]: row · vocab + token id. */
  readonly indices: Tensor;
  /** Log-probabilities, [n · k]. */
  readonly logProbabilities: Tensor;
  readonly k: number;
}

/** Added to the probability outside the k, on both sides, so that its logarithm stays finite when rounding makes it 0. */
const REST = 1e-6;

/**
 * KL(p ‖ q) over k + 1 outcomes: the teacher's k most probable tokens, and all others together. A lower bound of the whole
 * KL (the data-processing inequality).
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
  return ops.scale(g, ops.add(g, inside, outside), { factor: -(temperature ** 2) / rows });
}
