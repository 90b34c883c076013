import { DTYPE_ID, type DType, dataBytes } from "../../ggml/dtype.js";
import { ShapeError } from "../../system/errors.js";
import type { Gradient } from "../gradient.js";
import type { Graph } from "../graph.js";
import { ANY, defineOp, FLOATS, type Op, reshaped } from "../op.js";
import {
  axisFromEnd,
  describe,
  elementCount,
  nativeSizes,
  type Shape,
  sameShape,
  sizeAt,
  type Tensor,
} from "../tensor.js";

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
    return order.map((axis) => sizeAt(x, axis));
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

/** So many elements from `offset` on, as a tensor of the shape `to`: a view, no copy. No gradient. */
export const part: Op<[x: Tensor], { readonly offset: number; readonly to: Shape }> = defineOp("part", 1, {
  accepts: [ANY],
  shape: ([x], { offset, to }) => {
    if (!(offset >= 0 && offset + elementCount(to) <= elementCount(x.shape)))
      throw new ShapeError(`${describe(x)} has no [${to.join(", ")}] from element ${offset} on`);
    return to;
  },
  dtype: ([x]) => x.dtype,
  build: ({ f, context }, [x], { offset, to }) => {
    const sizes = nativeSizes(to);
    const bytes = dataBytes(x.dtype, 1);
    const strides = [sizes[0], sizes[0] * sizes[1], sizes[0] * sizes[1] * sizes[2]].map((count) => count * bytes);
    return f.ggml_view_4d(context, x.handle, ...sizes, ...(strides as [number, number, number]), offset * bytes);
  },
});

/** The elements [from, to) of the first axis: a view. No gradient. */
export function rowsOf(g: Graph, x: Tensor, { from, to }: { readonly from: number; readonly to: number }): Tensor {
  const inner = x.shape.slice(1);
  return part(g, x, { offset: from * elementCount(inner), to: [to - from, ...inner] });
}

const padLast: Op<[x: Tensor], { readonly to: number }> = defineOp("padLast", 1, {
  shape: ([x], { to }) => [...x.shape.slice(0, -1), to],
  build: ({ f, context }, [x], { to }) => f.ggml_pad(context, x.handle, to - axisFromEnd(x.shape, 1), 0, 0, 0),
});

/** The first `count` elements of the last axis. Copies, unless it is all of them. @throws ShapeError when there are fewer */
export function firstColumns(g: Graph, x: Tensor, count: number): Tensor {
  const width = axisFromEnd(x.shape, 1);
  if (!(count >= 1 && count <= width)) throw new ShapeError(`${describe(x)} has no ${count} columns`);
  return count === width ? x : columns(g, x, { from: 0, size: count });
}

const concatTwo: Op<[a: Tensor, b: Tensor]> = defineOp("concatRows", 2, {
  accepts: [ANY, ANY],
  shape: ([a, b]) => {
    if (!sameShape(a.shape.slice(1), b.shape.slice(1)) || a.dtype !== b.dtype)
      throw new ShapeError(`${describe(b)} cannot follow ${describe(a)}`);
    return [sizeAt(a, 0) + sizeAt(b, 0), ...a.shape.slice(1)];
  },
  dtype: ([a]) => a.dtype,
  build: ({ f, context }, [a, b]) => f.ggml_concat(context, a.handle, b.handle, a.shape.length - 1),
});

/** Tensors one after the other along the first axis. No gradient. */
export function concatRows(g: Graph, parts: readonly Tensor[]): Tensor {
  const [first, ...others] = parts;
  if (first === undefined) throw new ShapeError("there is nothing to put together");
  return others.reduce((all, next) => concatTwo(g, all, next), first);
}

/** The elements [from, from + size) of the last axis. The gradient is for those that begin at the first only. */
const columns: Op<[x: Tensor], { readonly from: number; readonly size: number }> = defineOp("columns", 1, {
  accepts: [FLOATS],
  shape: ([x], { size }) => [...x.shape.slice(0, -1), size],
  dtype: ([x]) => x.dtype,
  build: ({ f, context }, [x], { from, size }) => {
    const width = axisFromEnd(x.shape, 1);
    const rows = elementCount(x.shape) / width;
    const bytes = dataBytes(x.dtype, 1);
    const strides = [width * bytes, width * rows * bytes, width * rows * bytes] as const;
    const view = f.ggml_view_4d(context, x.handle, size, rows, 1, 1, ...strides, from * bytes);
    return reshaped({ f, context }, f.ggml_cont(context, view), [...x.shape.slice(0, -1), size]);
  },
  vjp: (g, dy, { inputs: [x], attributes: { from } }) => [
    from === 0 ? () => padLast(g, dy, { to: axisFromEnd(x.shape, 1) }) : null,
  ],
});

/** Zeros of a shape, a constant. */
export const zeros = (g: Graph, shape: Shape): Tensor =>
  g.constant(`zeros ${shape.join()}`, "f32", shape, new Float32Array(elementCount(shape)));

/**
 * Splits the last axis into runs of these sizes, one after the other: [..., n] -> [..., sizes[0]], [..., sizes[1]], ...
 * @throws ShapeError when the sizes do not add up to n
 */
export function splitLast(g: Graph, x: Tensor, sizes: readonly number[]): Tensor[] {
  const fits = sizes.every((size) => Number.isSafeInteger(size) && size > 0);
  if (!fits || sizes.reduce((sum, size) => sum + size, 0) !== axisFromEnd(x.shape, 1))
    throw new ShapeError(`the last axis of ${describe(x)} cannot be split into ${sizes.join(" + ") || "nothing"}`);
  let from = 0;
  const outputs = sizes.map((size): Tensor => {
    const values = g.withoutGradient(() => columns(g, x, { from, size }));
    from += size;
    return { ...values, requiresGrad: g.isRecording && x.requiresGrad };
  });
  g.recordAll({
    outputs,
    inputs: [x],
    vjp: (dys) => {
      const parts = dys.map((dy, i) => dy ?? zeros(g, outputs[i]?.shape ?? []));
      return [{ value: () => concatLast(g, parts) }];
    },
  });
  return outputs;
}

/** How many tensors the kernel puts together at once: as many as ggml's custom ops may read. */
const MOST_PARTS = 9;

/** Tensors side by side along the last axis; the other axes must agree. */
export function concatLast(g: Graph, parts: readonly Tensor[]): Tensor {
  const [first, ...others] = parts;
  if (first === undefined) throw new ShapeError("there is nothing to put together");
  const most = g.backend.kernels === undefined ? 2 : MOST_PARTS;
  if (parts.length > most) return concatLast(g, [concatLast(g, parts.slice(0, most)), ...parts.slice(most)]);
  return others.length === 0 ? first : sideBySide(parts.length)(g, ...parts);
}

const sideBySide = (count: number): Op<readonly Tensor[]> =>
  defineOp<readonly Tensor[]>("concatLast", count, {
    shape: ([first, ...others]) => {
      const leading = first?.shape.slice(0, -1) ?? [];
      for (const other of others)
        if (first !== undefined && !sameShape(other.shape.slice(0, -1), leading))
          throw new ShapeError(`${describe(other)} cannot stand beside ${describe(first)}`);
      return [...leading, [first, ...others].reduce((sum, x) => sum + axisFromEnd(x?.shape ?? [], 1), 0)];
    },
    kernel: () => ({ name: "concat_last" }),
    build: ({ f, context }, inputs) =>
      inputs.map(({ handle }) => handle).reduce((all, next) => f.ggml_concat(context, all, next, 0)),
    vjp: (g, dy, { inputs }) => {
      let from = 0;
      return inputs.map((x): Gradient => {
        const run = { from, size: axisFromEnd(x.shape, 1) };
        from += run.size;
        return { value: () => columns(g, dy, run) };
      });
    },
  });

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
