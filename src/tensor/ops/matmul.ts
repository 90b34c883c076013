import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op } from "../op.js";
import { axisFromEnd, describe, elementCount, sameShape, type Tensor } from "../tensor.js";
import { operand, reshape, transpose, transposedOperand } from "./shape.js";

const PRECISION_F32 = 10;

/** The product itself, operands as they are. Not recorded: {@link matmul} holds the gradient. */
const product: Op<[a: Tensor, b: Tensor]> = defineOp("matmul", 2, {
  shape: ([a, b]) => [...a.shape.slice(0, -1), axisFromEnd(b.shape, 2)],
  build: ({ f, context }, [a, b]) => {
    const node = f.ggml_mul_mat(context, b.handle, a.handle);
    if (b.dtype === "f32") f.ggml_mul_mat_set_prec(node, PRECISION_F32);
    return node;
  },
});

const recorded: Op<[a: Tensor, b: Tensor, value: Tensor]> = defineOp("matmul", 3, {
  shape: ([, , value]) => value.shape,
  build: (_native, [, , value]) => value.handle,
  vjp: (g, dy, { inputs: [a, b] }) => [
    () => product(g, dy, transposedOperand(g, b)), // dA = dC B
    () => product(g, transpose(g, dy), transposedOperand(g, a)), // dB = dCᵀ A
    null,
  ],
});

/**
 * a bᵀ over the last two axes: [..., n, k] x [..., m, k] -> [..., n, m]. The leading axes must agree. b is read in the
 * graph's compute type (bf16 for speed), the sum is f32.
 */
export function matmul(g: Graph, a: Tensor, b: Tensor): Tensor {
  const fits =
    axisFromEnd(a.shape, 1) === axisFromEnd(b.shape, 1) && sameShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  if (!fits || a.shape.length < 2)
    throw new ShapeError(
      `${describe(a)} times the transpose of ${describe(b)}: the last axes and the leading ones must agree`,
    );
  const value = g.withoutGradient(() => product(g, a, operand(g, b)));
  return recorded(g, a, b, value);
}

/** x Wᵀ: [..., in] x [out, in] -> [..., out], as a linear layer's. */
export function linear(g: Graph, x: Tensor, weight: Tensor): Tensor {
  const inputSize = axisFromEnd(x.shape, 1);
  const rows = elementCount(x.shape) / inputSize;
  const flat = x.shape.length === 2 ? x : reshape(g, x, { to: [rows, inputSize] });
  const result = matmul(g, flat, weight);
  if (x.shape.length === 2) return result;
  return reshape(g, result, { to: [...x.shape.slice(0, -1), axisFromEnd(weight.shape, 2)] });
}
