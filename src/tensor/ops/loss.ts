import { ShapeError } from "../../system/errors.js";
import { defineOp, type Op } from "../op.js";
import { describe, sameShape, type Tensor } from "../tensor.js";
import { mul, scale, sub, sum } from "./elementwise.js";
import { logSoftmax, softmax } from "./transformer.js";

/**
 * Cross-entropy with soft labels, averaged over the rows: -1/n Σ_rows Σ_v p[v] log softmax(x)[v].
 * Its gradient by x is that of KL(p ‖ softmax x), because the entropy of p is a constant.
 * x, p: [n, vocab], p a distribution in each row -> [1], nats.
 */
export const softCrossEntropy: Op<[x: Tensor, p: Tensor]> = defineOp("softCrossEntropy", 2, {
  shape: ([x, p]) => {
    if (x.shape.length !== 2 || !sameShape(x.shape, p.shape))
      throw new ShapeError(`${describe(x)} and ${describe(p)} are not logits and labels of the same shape`);
    return [1];
  },
  build: ({ f, context }, [x, p]) => f.ggml_cross_entropy_loss(context, x.handle, p.handle),
  composed: (g, [x, p]) =>
    scale(g, sum(g, mul(g, p, logSoftmax(g, x, { scale: 1 }))), { factor: -1 / (x.shape[0] ?? 1) }),
  vjp: (g, dy, { inputs: [x, p] }) => [() => softCrossEntropyBack(g, dy, x, p), null],
});

const softCrossEntropyBack: Op<[dy: Tensor, x: Tensor, p: Tensor]> = defineOp("softCrossEntropyBack", 3, {
  shape: ([, x]) => x.shape,
  build: ({ f, context }, [dy, x, p]) => f.ggml_cross_entropy_loss_back(context, dy.handle, x.handle, p.handle),
  composed: (g, [dy, x, p]) =>
    scale(g, mul(g, sub(g, softmax(g, x, { scale: 1 }), p), dy), { factor: 1 / (x.shape[0] ?? 1) }),
});
