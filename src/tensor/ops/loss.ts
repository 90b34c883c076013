import type { Pointer } from "../../ggml/functions.js";
import { elementAt } from "../../system/arrays.js";
import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, INDICES, type Native, type Op, reshaped } from "../op.js";
import { describe, rowCount, type Shape, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { add, clamp, dotLast, log, mul, scale, sub, sum } from "./elementwise.js";
import { argmax, gather, takeAlongRows } from "./lookup.js";
import { reshape } from "./shape.js";
import { logSoftmax, softmax } from "./transformer.js";

/** Losses on rows of logits: each by a kernel that stores no distribution, and composed of other ops. */

/** The logits where a gradient can take their memory, because only the loss and the sum over its rows read them. */
const reusable = (g: Graph, logits: Tensor): Tensor | undefined => (g.isSpent(logits, 2) ? logits : undefined);

/** A view of the first column. */
function firstOfRows({ f, context }: Native, stats: Tensor): Pointer {
  const [rows, columns] = sizesOf(stats, 2);
  return f.ggml_view_4d(context, stats.handle, 1, rows, 1, 1, 4 * columns, 0, 0, 0);
}

// --- cross-entropy with a target token

/** The number of rows. @throws ShapeError when there is not one target for each */
function checkTargets([logits, indices]: readonly [Tensor, Tensor, ...Tensor[]]): number {
  if (logits.shape.length !== 2 || indices.shape.length !== 1 || indices.shape[0] !== logits.shape[0])
    throw new ShapeError(`${describe(indices)} does not name a target for each row of ${describe(logits)}`);
  return rowCount(indices);
}

/** Each row's loss, and the logarithm of its sum of exponentials, which the gradient needs: [n, 2]. */
const crossEntropyStats: Op<[logits: Tensor, indices: Tensor]> = defineOp("crossEntropyStats", 2, {
  accepts: [undefined, INDICES],
  shape: (inputs) => [checkTargets(inputs), 2],
  kernel: () => ({ name: "cross_entropy" }),
});

const crossEntropySum: Op<[logits: Tensor, indices: Tensor, stats: Tensor]> = defineOp("crossEntropy", 3, {
  accepts: [undefined, INDICES],
  shape: () => [1],
  build: (native, [, , stats]) => native.f.ggml_sum(native.context, firstOfRows(native, stats)),
  vjp: (g, dy, { inputs: [logits, indices, stats] }) => [
    () => crossEntropyBack(g, logits, indices, stats, dy),
    null,
    null,
  ],
});

const crossEntropyBack: Op<[logits: Tensor, indices: Tensor, stats: Tensor, dy: Tensor]> = defineOp(
  "crossEntropyBack",
  4,
  {
    accepts: [undefined, INDICES],
    shape: ([logits]) => logits.shape,
    kernel: ([logits], _, g) => ({ name: "cross_entropy_back", inPlace: reusable(g, logits) }),
  },
);

/**
 * Negative log-likelihood of a target in each row, in nats, summed over rows.
 * logits: [n, vocab]; indices: i32 [n], the target's index into the logits: row · vocab + id -> [1]
 */
export function crossEntropy(g: Graph, logits: Tensor, indices: Tensor): Tensor {
  if (g.backend.kernels === undefined) {
    checkTargets([logits, indices]);
    const likelihoods = gather(g, logSoftmax(g, logits, { scale: 1 }), indices);
    return scale(g, sum(g, likelihoods), { factor: -1 });
  }
  const stats = g.withoutGradient(() => crossEntropyStats(g, logits, indices));
  return crossEntropySum(g, logits, indices, stats);
}

const firstColumn: Op<[stats: Tensor]> = defineOp("firstColumn", 1, {
  shape: ([stats]) => [rowCount(stats)],
  build: (native, [stats]) =>
    reshaped(native, native.f.ggml_cont(native.context, firstOfRows(native, stats)), [rowCount(stats)]),
});

/** {@link crossEntropy} of each row: [n]. No gradient. */
export function crossEntropyOfRows(g: Graph, logits: Tensor, indices: Tensor): Tensor {
  checkTargets([logits, indices]);
  return g.withoutGradient(() =>
    g.backend.kernels === undefined
      ? scale(g, gather(g, logSoftmax(g, logits, { scale: 1 }), indices), { factor: -1 })
      : firstColumn(g, crossEntropyStats(g, logits, indices)),
  );
}

// --- divergence from a teacher's distribution

/** Divergences between distributions, in the order of their numbers in the kernels. */
const DIVERGENCE_KINDS = ["forward-kl", "reverse-kl", "jensen-shannon"] as const;
/**
 * A divergence between two distributions.
 * @useDeclaredType
 */
export type DivergenceKind = (typeof DIVERGENCE_KINDS)[number];

/** Settings of {@link divergence}. */
export interface DivergenceAttributes {
  readonly kind: DivergenceKind;
  /** Divides the logits of student and teacher. */
  readonly temperature: number;
}

const kernelSettings = ({ kind, temperature }: DivergenceAttributes) => ({
  flags: DIVERGENCE_KINDS.indexOf(kind),
  value: 1 / temperature,
});

/** The logits' shape. @throws ShapeError when student and teacher differ */
function checkLogits([student, teacher]: readonly [Tensor, Tensor, ...Tensor[]]): Shape {
  if (student.shape.length !== 2 || !sameShape(student.shape, teacher.shape))
    throw new ShapeError(`${describe(student)} and ${describe(teacher)} are not logits of the same rows`);
  return student.shape;
}

/** Each row's divergence, and the logarithms of both sums of exponentials, which the gradient needs: [n, 3]. */
const divergenceStats: Op<[student: Tensor, teacher: Tensor], DivergenceAttributes> = defineOp("divergenceStats", 2, {
  shape: (inputs) => [elementAt(checkLogits(inputs), 0), 3],
  kernel: (_, attributes) => ({ name: "divergence", ...kernelSettings(attributes) }),
});

const divergenceSum: Op<[student: Tensor, teacher: Tensor, stats: Tensor], DivergenceAttributes> = defineOp(
  "divergence",
  3,
  {
    shape: () => [1],
    build: (native, [, , stats]) => native.f.ggml_sum(native.context, firstOfRows(native, stats)),
    vjp: (g, dy, { inputs: [student, teacher, stats], attributes }) => [
      () => divergenceBack(g, student, teacher, stats, dy, attributes),
      null,
      null,
    ],
  },
);

const divergenceBack: Op<[student: Tensor, teacher: Tensor, stats: Tensor, dy: Tensor], DivergenceAttributes> =
  defineOp("divergenceBack", 4, {
    shape: ([student]) => student.shape,
    kernel: ([student], attributes, g) => ({
      name: "divergence_back",
      ...kernelSettings(attributes),
      inPlace: reusable(g, student),
    }),
  });

/**
 * Divergence of the student's distributions from the teacher's, in nats, summed over rows and multiplied by T², so that gradients
 * keep their size at a temperature T (Hinton et al. 2015, section 2). The gradient flows to the student only.
 * student, teacher: logits [n, vocab] -> [1]
 */
export function divergence(g: Graph, student: Tensor, teacher: Tensor, attributes: DivergenceAttributes): Tensor {
  const { kind, temperature } = attributes;
  const summed = () => {
    if (g.backend.kernels === undefined) {
      const tempered = (logits: Tensor) => (temperature === 1 ? logits : scale(g, logits, { factor: 1 / temperature }));
      return COMPOSED[kind](
        g,
        tempered(student),
        g.withoutGradient(() => tempered(teacher)),
      );
    }
    const stats = g.withoutGradient(() => divergenceStats(g, student, teacher, attributes));
    return divergenceSum(g, student, teacher, stats, attributes);
  };
  return temperature === 1 ? summed() : scale(g, summed(), { factor: temperature ** 2 });
}

/** Keeps logarithms finite; far below any probability that matters. */
const TINY = 1e-30;

const COMPOSED: Record<DivergenceKind, (g: Graph, student: Tensor, teacher: Tensor) => Tensor> = {
  /** KL(p ‖ q) (Hinton et al. 2015; arXiv 2407.14679, eq. 5). */
  "forward-kl": (g, student, teacher) => {
    const [p, q, value] = g.withoutGradient(() => {
      const both = [softmax(g, teacher, { scale: 1 }), softmax(g, student, { scale: 1 })] as const;
      return [...both, forwardKl(g, student, teacher, ...both)];
    });
    return recordedForwardKl(g, student, p, q, value);
  },
  /** KL(q ‖ p). */
  "reverse-kl": (g, student, teacher) => {
    const logP = g.withoutGradient(() => logSoftmax(g, teacher, { scale: 1 }));
    const logQ = logSoftmax(g, student, { scale: 1 });
    const q = softmax(g, student, { scale: 1 });
    return sum(g, mul(g, q, sub(g, logQ, logP)));
  },
  /** ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2 (Lin 1991, eq. 4.1). */
  "jensen-shannon": (g, student, teacher) => {
    const p = g.withoutGradient(() => softmax(g, teacher, { scale: 1 }));
    const logP = g.withoutGradient(() => logSoftmax(g, teacher, { scale: 1 }));
    const q = softmax(g, student, { scale: 1 });
    const logQ = logSoftmax(g, student, { scale: 1 });
    const logM = log(g, scale(g, add(g, q, p), { factor: 0.5, bias: TINY }));
    // p is a constant: written second, it broadcasts against what carries the gradient
    const towardsTeacher = mul(g, scale(g, sub(g, logM, logP), { factor: -1 }), p);
    const towardsStudent = mul(g, q, sub(g, logQ, logM));
    return scale(g, sum(g, add(g, towardsTeacher, towardsStudent)), { factor: 0.5 });
  },
};

/** KL(p ‖ q) from logits t and s: Σ p (t - s) plus, for each row, the difference of their log-sums of exponentials. */
function forwardKl(g: Graph, student: Tensor, teacher: Tensor, p: Tensor, q: Tensor): Tensor {
  const best = argmax(g, teacher);
  // the log-sum is a logit minus its log-probability, taken at the teacher's first choice, which f32 can represent for both
  const logSum = (logits: Tensor, probabilities: Tensor) =>
    sub(g, takeAlongRows(g, logits, best), log(g, atLeastTiny(g, takeAlongRows(g, probabilities, best))));
  const shift = sub(g, logSum(student, q), logSum(teacher, p));
  const difference = sub(g, dotLast(g, p, teacher), dotLast(g, p, student)); // Σ p (t - s)
  return sum(g, add(g, reshape(g, difference, { to: shift.shape }), shift));
}

const atLeastTiny = (g: Graph, x: Tensor): Tensor => clamp(g, x, { low: TINY, high: 1 });

/** The value with its gradient by the student's logits, q - p. */
const recordedForwardKl: Op<[student: Tensor, p: Tensor, q: Tensor, value: Tensor]> = defineOp("forwardKl", 4, {
  shape: () => [1],
  build: (_native, [, , , value]) => value.handle,
  vjp: (g, dy, { inputs: [, p, q] }) => [() => mul(g, sub(g, q, p), dy), null, null, null],
});
