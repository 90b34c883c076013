import { DTYPE_ID, type DType } from "../../ggml/dtype.js";
import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { ANY, defineOp, FLOATS, type Op, reshaped } from "../op.js";
import { axisFromEnd, describe, elementCount, type Shape, type Tensor } from "../tensor.js";

/** The same elements in another shape. */
export const reshape: Op<[x: Tensor], { readonly to: Shape }> = defineOp("reshape", 1, {
  accepts: [ANY],
  shape: ([x], { to }) => {
    if (elementCount(to) !== elementCount(x.shape))
      throw new ShapeError(`${describe(x)} cannot be reshaped to [${to.join(", ")}]`);
    return to;
  },
  dtype: ([x]) => x.dtype,
  build: (native, [x], { to }) => reshaped(native, x.handle, to),
  vjp: (g, dy, { inputs: [x] }) => [() => reshape(g, dy, { to: x.shape })],
});

/** Reorders the axes, as numpy's `transpose(order)`: axis i of the result is axis order[i] of x. Copies. */
export const permute: Op<[x: Tensor], { readonly order: readonly number[] }> = defineOp("permute", 1, {
  accepts: [ANY],
  shape: ([x], { order }) => {
    if (order.length !== x.shape.length || [...order].sort().some((axis, i) => axis !== i))
      throw new ShapeError(`${describe(x)}: [${order.join(", ")}] is no order of its axes`);
    return order.map((axis) => x.shape[axis] ?? 1);
  },
  dtype: ([x]) => x.dtype,
  build: ({ f, context }, [x], { order }) =>
    f.ggml_cont(context, f.ggml_permute(context, x.handle, ...nativeOrder(order))),
  vjp: (g, dy, { attributes: { order } }) => [
    () => permute(g, dy, { order: order.map((_, axis) => order.indexOf(axis)) }),
  ],
});

/** ggml's permute says where each of its axes (innermost first) goes. */
function nativeOrder(order: readonly number[]): [number, number, number, number] {
  const rank = order.length;
  const target = [0, 1, 2, 3];
  order.forEach((from, to) => {
    target[rank - 1 - from] = rank - 1 - to;
  });
  return target as [number, number, number, number];
}

/** Converts the element type. The gradient stays f32. */
export const cast: Op<[x: Tensor], { readonly to: DType }> = defineOp("cast", 1, {
  accepts: [ANY],
  shape: ([x]) => x.shape,
  dtype: (_, { to }) => to,
  build: ({ f, context }, [x], { to }) => f.ggml_cast(context, x.handle, DTYPE_ID[to]),
  vjp: (_g, dy) => [() => dy],
});

/** x with its last two axes swapped, as a right operand of a product: in the graph's compute type, made once. */
export function transposedOperand(g: Graph, x: Tensor): Tensor {
  const to = operandType(g, x, axisFromEnd(x.shape, 2));
  return g.memo(x, "transposed operand", () => g.withoutGradient(() => transposeCast(g, x, { to })));
}

/** x as a right operand of a product: in the graph's compute type, made once. */
export function operand(g: Graph, x: Tensor): Tensor {
  const to = operandType(g, x, axisFromEnd(x.shape, 1));
  return x.dtype === to ? x : g.memo(x, "operand", () => g.withoutGradient(() => cast(g, x, { to })));
}

/** ggml's bf16 kernels are fast only where the summed axis is a multiple of this; f32 is faster elsewhere. */
const BF16_BLOCK = 32;

/** The type to read an operand in, whose axis of size `summed` is summed over. What is stored small is read as it is. */
function operandType(g: Graph, x: Tensor, summed: number): DType {
  if (x.dtype !== "f32") return x.dtype;
  return summed % BF16_BLOCK === 0 ? g.computeType : "f32";
}

const transposeCast: Op<[x: Tensor], { readonly to: DType }> = defineOp("transpose", 1, {
  accepts: [FLOATS],
  shape: ([x]) => [...x.shape.slice(0, -2), axisFromEnd(x.shape, 1), axisFromEnd(x.shape, 2)],
  dtype: (_, { to }) => to,
  build: ({ f, context }, [x], { to }) => {
    const view = f.ggml_permute(context, x.handle, 1, 0, 2, 3);
    return x.dtype === to ? f.ggml_cont(context, view) : f.ggml_cast(context, view, DTYPE_ID[to]);
  },
});

/** x with its last two axes swapped, in its own type. */
export const transpose = (g: Graph, x: Tensor): Tensor =>
  g.memo(x, "transpose", () => g.withoutGradient(() => transposeCast(g, x, { to: x.dtype })));
