import { DTYPE_ID, type DType, dataBytes } from "../../ggml/dtype.js";
import { elementAt } from "../../system/arrays.js";
import { ShapeError } from "../../system/errors.js";
import type { Gradient } from "../gradient.js";
import type { Graph } from "../graph.js";
import { ANY, defineOp, FLOATS, type Op, reshaped } from "../op.js";
import {
  axisFromEnd,
  describe,
  elementCount,
  nativeSizes,
  rowCount,
  type Shape,
  sameShape,
  type Tensor,
} from "../tensor.js";

/** The same elements in another shape. */
export const reshape: Op<[x: Tensor], { readonly to: Shape }> = defineOp("reshape", 1, {
  accepts: [ANY],
  isView: true,
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
      throw new ShapeError(`${describe(x)}: [${order.join(", ")}] is not an order of its axes`);
    return order.map((axis) => elementAt(x.shape, axis));
  },
  dtype: ([x]) => x.dtype,
  build: ({ f, context }, [x], { order }) =>
    f.ggml_cont(context, f.ggml_permute(context, x.handle, ...nativeOrder(order))),
  vjp: (g, dy, { attributes: { order } }) => [
    () => permute(g, dy, { order: order.map((_, axis) => order.indexOf(axis)) }),
  ],
});

/** The order as ggml's permute takes it: where each axis, innermost first, goes. */
function nativeOrder(order: readonly number[]): [number, number, number, number] {
  const rank = order.length;
  const target = [0, 1, 2, 3];
  order.forEach((from, to) => {
    target[rank - 1 - from] = rank - 1 - to;
  });
  return target as [number, number, number, number];
}

/** A view of elements from `offset` on, in the shape `to`. No gradient. */
export const part: Op<[x: Tensor], { readonly offset: number; readonly to: Shape }> = defineOp("part", 1, {
  accepts: [ANY],
  isView: true,
  shape: ([x], { offset, to }) => {
    if (!(offset >= 0 && offset + elementCount(to) <= elementCount(x.shape)))
      throw new ShapeError(`${describe(x)} has too few elements for [${to.join(", ")}] from element ${offset} on`);
    return to;
  },
  dtype: ([x]) => x.dtype,
  build: ({ f, context }, [x], { offset, to }) => {
    const sizes = nativeSizes(to);
    const bytes = dataBytes(x.dtype, 1);
    const row = sizes[0] * bytes;
    const strides = [row, row * sizes[1], row * sizes[1] * sizes[2]] as const;
    return f.ggml_view_4d(context, x.handle, ...sizes, ...strides, offset * bytes);
  },
});

/** The elements [from, to) of the first axis: a view. No gradient. */
export function rowsOf(g: Graph, x: Tensor, { from, to }: { readonly from: number; readonly to: number }): Tensor {
  const inner = x.shape.slice(1);
  return part(g, x, { offset: from * elementCount(inner), to: [to - from, ...inner] });
}

/** Zeros after the last axis, up to a size. No gradient. */
export const padLast: Op<[x: Tensor], { readonly to: number }> = defineOp("padLast", 1, {
  shape: ([x], { to }) => [...x.shape.slice(0, -1), to],
  build: ({ f, context }, [x], { to }) => f.ggml_pad(context, x.handle, to - axisFromEnd(x.shape, 1), 0, 0, 0),
});

/** The first `count` elements of the last axis. Copies, unless they are all. @throws ShapeError when there are fewer */
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
    return [rowCount(a) + rowCount(b), ...a.shape.slice(1)];
  },
  dtype: ([a]) => a.dtype,
  build: ({ f, context }, [a, b]) => f.ggml_concat(context, a.handle, b.handle, a.shape.length - 1),
});

/** Concatenates tensors along the first axis. No gradient. */
export function concatRows(g: Graph, parts: readonly Tensor[]): Tensor {
  const [first, ...others] = parts;
  if (first === undefined) throw new ShapeError("there are no tensors to concatenate");
  return others.reduce((all, next) => concatTwo(g, all, next), first);
}

const positions: Op<[x: Tensor], { readonly from: number; readonly to: number }> = defineOp("positions", 1, {
  shape: ([x], { from, to }) => [...x.shape.slice(0, -2), to - from, axisFromEnd(x.shape, 1)],
  build: ({ f, context }, [x], { from, to }) => {
    const [width, rows, inner, outer] = nativeSizes(x.shape);
    const row = dataBytes("f32", width);
    const strides = [row, row * rows, row * rows * inner] as const;
    return f.ggml_cont(
      context,
      f.ggml_view_4d(context, x.handle, width, to - from, inner, outer, ...strides, from * row),
    );
  },
});

/** The elements [from, to) of the second-last axis. Copies, unless they are all. No gradient. @throws ShapeError when there are fewer */
export function positionsOf(g: Graph, x: Tensor, range: { readonly from: number; readonly to: number }): Tensor {
  const count = axisFromEnd(x.shape, 2);
  if (!(x.shape.length >= 2 && range.from >= 0 && range.from < range.to && range.to <= count))
    throw new ShapeError(`${describe(x)} has no positions ${range.from} to ${range.to}`);
  return range.to - range.from === count ? x : positions(g, x, range);
}

/** Zeros after the second-last axis, up to a size. No gradient. */
export const padPositions: Op<[x: Tensor], { readonly to: number }> = defineOp("padPositions", 1, {
  shape: ([x], { to }) => [...x.shape.slice(0, -2), to, axisFromEnd(x.shape, 1)],
  build: ({ f, context }, [x], { to }) => f.ggml_pad(context, x.handle, 0, to - axisFromEnd(x.shape, 2), 0, 0),
});

const concatTwoPositions: Op<[a: Tensor, b: Tensor]> = defineOp("concatPositions", 2, {
  shape: ([a, b]) => {
    const others = ({ shape }: Tensor) => [...shape.slice(0, -2), axisFromEnd(shape, 1)];
    if (!sameShape(others(a), others(b))) throw new ShapeError(`${describe(b)} cannot follow ${describe(a)}`);
    return [...a.shape.slice(0, -2), axisFromEnd(a.shape, 2) + axisFromEnd(b.shape, 2), axisFromEnd(a.shape, 1)];
  },
  build: ({ f, context }, [a, b]) => f.ggml_concat(context, a.handle, b.handle, 1),
});

/** Concatenates tensors along the second-last axis, neighbors first, so that each is copied few times. No gradient. */
export function concatPositions(g: Graph, parts: readonly Tensor[]): Tensor {
  if (parts.length <= 1) return elementAt(parts, 0);
  const pairs = Array.from({ length: Math.ceil(parts.length / 2) }, (_, i) => parts.slice(2 * i, 2 * i + 2));
  return concatPositions(
    g,
    pairs.map(([a, b]) => (b === undefined ? (a as Tensor) : concatTwoPositions(g, a as Tensor, b))),
  );
}

/** The elements [from, from + size) of the last axis. Has a gradient only where `from` is 0. */
export const columns: Op<[x: Tensor], { readonly from: number; readonly size: number }> = defineOp("columns", 1, {
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

/** A constant of zeros. */
export const zeros = (g: Graph, shape: Shape): Tensor =>
  g.constant(`zeros ${shape.join()}`, "f32", shape, () => new Float32Array(elementCount(shape)));

/**
 * Splits the last axis into consecutive parts: [..., n] -> [..., sizes[0]], [..., sizes[1]], ...
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
      const parts = dys.map((dy, i) => dy ?? zeros(g, elementAt(outputs, i).shape));
      return [{ value: () => concatLast(g, parts) }];
    },
  });
  return outputs;
}

/** How many tensors the kernel concatenates at once: as many as ggml's custom ops may read. */
const MOST_PARTS = 9;

/** Concatenates tensors along the last axis. @throws ShapeError when the other axes differ */
export function concatLast(g: Graph, parts: readonly Tensor[]): Tensor {
  const [first, ...others] = parts;
  if (first === undefined) throw new ShapeError("there are no tensors to concatenate");
  const most = g.backend.kernels === undefined ? 2 : MOST_PARTS;
  if (parts.length > most) return concatLast(g, [concatLast(g, parts.slice(0, most)), ...parts.slice(most)]);
  return others.length === 0 ? first : concatOp(parts.length)(g, ...parts);
}

const concatOp = (count: number): Op<readonly Tensor[]> =>
  defineOp<readonly Tensor[]>("concatLast", count, {
    shape: (inputs) => {
      const first = elementAt(inputs, 0);
      const leading = first.shape.slice(0, -1);
      for (const other of inputs)
        if (!sameShape(other.shape.slice(0, -1), leading))
          throw new ShapeError(`${describe(other)} and ${describe(first)} cannot be concatenated: leading axes differ`);
      return [...leading, inputs.reduce((sum, x) => sum + axisFromEnd(x.shape, 1), 0)];
    },
    kernel: () => ({ name: "concat_last" }),
    build: ({ f, context }, inputs) =>
      inputs.map(({ handle }) => handle).reduce((all, next) => f.ggml_concat(context, all, next, 0)),
    vjp: (g, dy, { inputs }) => {
      let from = 0;
      return inputs.map((x): Gradient => {
        const range = { from, size: axisFromEnd(x.shape, 1) };
        from += range.size;
        return { value: () => columns(g, dy, range) };
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

/** x with its last two axes swapped, as a right operand of a product: in the graph's compute type, computed once. */
export function transposedOperand(g: Graph, x: Tensor): Tensor {
  const to = operandType(g, x, axisFromEnd(x.shape, 2));
  return g.memo(x, "transposed operand", () => g.withoutGradient(() => transposeCast(g, x, { to })));
}

/** x as a right operand of a product: in the graph's compute type, computed once. */
export function operand(g: Graph, x: Tensor): Tensor {
  const to = operandType(g, x, axisFromEnd(x.shape, 1));
  return x.dtype === to ? x : g.memo(x, "operand", () => g.withoutGradient(() => cast(g, x, { to })));
}

/** ggml's bf16 kernels are fast only where the summed axis is a multiple of this; f32 is faster elsewhere. */
const BF16_BLOCK = 32;

/** The type to read an operand in, whose axis of size `summed` is summed over. Only f32 is converted. */
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
