import { ShapeError } from "../../system/errors.js";
import { defineOp, FLOATS, INDICES, type Op, reshaped, WEIGHTS } from "../op.js";
import { describe, elementCount, sizeAt, type Tensor } from "../tensor.js";

/** Rows of a table: table [rows, width], ids i32 [n] -> [n, width]. The ids must be in range. */
export const embedding: Op<[table: Tensor, ids: Tensor]> = defineOp("embedding", 2, {
  accepts: [WEIGHTS, INDICES],
  shape: ([table, ids]) => {
    if (table.shape.length !== 2 || ids.dtype !== "i32" || ids.shape.length !== 1)
      throw new ShapeError(`${describe(ids)} cannot look up rows of ${describe(table)}`);
    return [elementCount(ids.shape), sizeAt(table, 1)];
  },
  build: ({ f, context }, [table, ids]) => f.ggml_get_rows(context, table.handle, ids.handle),
  vjp: (g, dy, { inputs: [table, ids] }) => [
    {
      value: () => embeddingBack(g, dy, ids, table),
      ...(g.backend.kernels !== undefined && { addTo: (sum: Tensor) => addRows(g, sum, dy, ids) }),
    },
    null,
  ],
});

const embeddingBack: Op<[dy: Tensor, ids: Tensor, table: Tensor]> = defineOp("embeddingBack", 3, {
  accepts: [undefined, INDICES, FLOATS],
  shape: ([, , table]) => table.shape,
  build: ({ f, context }, [dy, ids, table]) => f.ggml_get_rows_back(context, dy.handle, ids.handle, table.handle),
});

/** table[ids[i]] += x[i], in place; an id may come more than once. On devices with kernels. No gradient. */
export const addRows: Op<[table: Tensor, x: Tensor, ids: Tensor]> = defineOp("addRows", 3, {
  accepts: [undefined, undefined, INDICES],
  shape: ([sum]) => sum.shape,
  kernel: ([sum]) => ({ name: "add_rows", inPlace: sum }),
});

/**
 * Single elements: x of any shape, indices i32 [n] into its elements in order -> [n]. For element j of row r of a
 * [rows, width] tensor the index is r · width + j.
 */
export const gather: Op<[x: Tensor, indices: Tensor]> = defineOp("gather", 2, {
  accepts: [undefined, INDICES],
  shape: ([x, indices]) => {
    if (indices.dtype !== "i32" || indices.shape.length !== 1 || elementCount(x.shape) > 0x7fffffff)
      throw new ShapeError(`${describe(indices)} cannot gather from ${describe(x)}`);
    return indices.shape;
  },
  build: (native, [x, indices]) => {
    const column = reshaped(native, x.handle, [elementCount(x.shape), 1]);
    const picked = native.f.ggml_get_rows(native.context, column, indices.handle);
    return reshaped(native, picked, indices.shape);
  },
  vjp: (g, dy, { inputs: [x, indices] }) => [() => scatter(g, dy, indices, x), null],
});

const scatter: Op<[dy: Tensor, indices: Tensor, like: Tensor]> = defineOp("scatter", 3, {
  accepts: [undefined, INDICES],
  shape: ([, , like]) => like.shape,
  build: (native, [dy, indices, like]) => {
    const column = reshaped(native, dy.handle, [elementCount(dy.shape), 1]);
    const shape = native.f.ggml_new_tensor_4d(native.context, 0, 1, elementCount(like.shape), 1, 1);
    return reshaped(native, native.f.ggml_get_rows_back(native.context, column, indices.handle, shape), like.shape);
  },
});

/** Indices of the k largest elements of each row, largest first: [rows, width] -> i32 [rows, k]. No gradient. */
export const topKIndices: Op<[x: Tensor], { readonly k: number }> = defineOp("topKIndices", 1, {
  shape: ([x], { k }) => {
    if (x.shape.length !== 2 || !(k >= 1 && k <= sizeAt(x, 1)))
      throw new ShapeError(`the ${k} largest of each row of ${describe(x)} cannot be taken`);
    return [sizeAt(x, 0), k];
  },
  dtype: () => "i32",
  build: ({ f, context }, [x], { k }) => f.ggml_cont(context, f.ggml_argsort_top_k(context, x.handle, k)),
});

/** Index of the largest element of each row: [rows, width] -> i32 [rows, 1]. No gradient. */
export const argmax: Op<[x: Tensor]> = defineOp("argmax", 1, {
  shape: ([x]) => {
    if (x.shape.length !== 2) throw new ShapeError(`${describe(x)} is not rows to find the largest element of`);
    return [sizeAt(x, 0), 1];
  },
  dtype: () => "i32",
  build: (native, [x]) => reshaped(native, native.f.ggml_argmax(native.context, x.handle), [sizeAt(x, 0), 1]),
});

/** The elements that each row's indices name: x [rows, width], indices i32 [rows, k] -> [rows, k]. No gradient. */
export const takeAlongRows: Op<[x: Tensor, indices: Tensor]> = defineOp("takeAlongRows", 2, {
  accepts: [undefined, INDICES],
  shape: ([x, indices]) => {
    if (
      x.shape.length !== 2 ||
      indices.shape.length !== 2 ||
      x.shape[0] !== indices.shape[0] ||
      indices.dtype !== "i32"
    )
      throw new ShapeError(`${describe(indices)} cannot pick from the rows of ${describe(x)}`);
    return indices.shape;
  },
  build: (native, [x, indices]) => {
    const columns = reshaped(native, x.handle, [sizeAt(x, 0), sizeAt(x, 1), 1]);
    return reshaped(native, native.f.ggml_get_rows(native.context, columns, indices.handle), indices.shape);
  },
});
