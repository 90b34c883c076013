import { setImmediate as rest } from "node:timers/promises";
import type { Backend } from "../ggml/device.js";
import { dataBytes } from "../ggml/dtype.js";
import type { Pointer } from "../ggml/functions.js";
import { defineOp, Graph, ops, type Tensor } from "../tensor/index.js";
import type { Native, Op } from "../tensor/op.js";
import { axisFromEnd } from "../tensor/tensor.js";
import type { Range } from "./matrix.js";

const viewOf = ({ f, context }: Native, x: Tensor, { row, column, rows, columns }: Range): Pointer => {
  const bytes = dataBytes("f32", 1);
  const stride = axisFromEnd(x.shape, 1) * bytes;
  const offset = row * stride + column * bytes;
  return f.ggml_view_4d(context, x.handle, columns, rows, 1, 1, stride, rows * stride, rows * stride, offset);
};

/** A block of an f32 matrix: a view of it. No gradient. */
export const block: Op<[x: Tensor], Range> = defineOp<[x: Tensor], Range>("block", 1, {
  isView: true,
  shape: (_, { rows, columns }) => [rows, columns],
  build: (native, [x], range) => viewOf(native, x, range),
});

/** The same, copied. */
export const blockCopy: Op<[x: Tensor], Range> = defineOp<[x: Tensor], Range>("blockCopy", 1, {
  shape: (_, { rows, columns }) => [rows, columns],
  build: (native, [x], range) => native.f.ggml_cont(native.context, viewOf(native, x, range)),
});

/**
 * A block of a matrix as an operand of a product. Our kernels read views; ggml's read them slowly on the CPU, and in f16 on
 * Vulkan, so they get a copy.
 */
export function blockOperand(g: Graph, x: Tensor, range: Range): Tensor {
  const adjacent = range.columns === axisFromEnd(x.shape, 1);
  return adjacent || g.backend.kernels !== undefined ? block(g, x, range) : blockCopy(g, x, range);
}

/** a bᵀ: [n, k] x [m, k] -> [n, m]. */
export const timesTransposed = (g: Graph, a: Tensor, b: Tensor): Tensor => ops.matmul(g, a, b);

/** a b: [n, k] x [k, m] -> [n, m]. */
export const times = (g: Graph, a: Tensor, b: Tensor): Tensor => ops.linear(g, a, b, { transposed: true });

/** x with rows and columns swapped. */
export const transposed = (g: Graph, x: Tensor): Tensor => ops.permute(g, x, { order: [1, 0] });

/** Stores a value in a block of a store's tensor when the graph runs, for the steps recorded after it. */
export const store = (g: Graph, value: Tensor, target: Tensor, range: Range): void =>
  g.effect(ops.assign(g, value, block(g, target, range)));

/** Records a computation, runs it once, and frees it. */
export async function runOnce<T>(backend: Backend, use: (g: Graph) => Promise<T>): Promise<T> {
  const g = new Graph(backend);
  try {
    return await use(g);
  } finally {
    g.free();
    await rest();
  }
}

/** Reads the elements [from, from + into.length) of an f32 tensor. */
export function readElements(backend: Backend, tensor: Tensor, from: number, into: Float32Array): void {
  const bytes = new Uint8Array(into.buffer, into.byteOffset, into.byteLength);
  backend.functions.ggml_backend_tensor_get(tensor.handle, bytes, from * Float32Array.BYTES_PER_ELEMENT, bytes.length);
}

/** Writes the elements [from, from + data.length) of an f32 tensor. */
export function writeElements(backend: Backend, tensor: Tensor, from: number, data: Float32Array): void {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  backend.functions.ggml_backend_tensor_set(tensor.handle, bytes, from * Float32Array.BYTES_PER_ELEMENT, bytes.length);
}

/** Elements to copy between the host and the device before the event loop gets a rest: 64 MB. */
const COPIED_AT_ONCE = 16 << 20;

/** Writes a whole f32 tensor, with rests for the event loop. */
export async function writeAll(backend: Backend, tensor: Tensor, data: Float32Array): Promise<void> {
  for (let from = 0; from < data.length; from += COPIED_AT_ONCE) {
    writeElements(backend, tensor, from, data.subarray(from, from + COPIED_AT_ONCE));
    await rest();
  }
}

/** The diagonal of a square f32 tensor. */
export function diagonalOf(backend: Backend, tensor: Tensor): Float32Array {
  const diagonal = new Float32Array(tensor.shape[0] ?? 0);
  for (let i = 0; i < diagonal.length; i++)
    readElements(backend, tensor, i * (diagonal.length + 1), diagonal.subarray(i, i + 1));
  return diagonal;
}

/**
 * Moves some rows of an f32 matrix to its beginning, and some columns of theirs to the left; what else was there is undefined
 * afterwards. Rests for the event loop.
 * @param rows in rising order @param columns in rising order; all by default
 */
export async function keepRows(
  backend: Backend,
  x: Tensor,
  rows: readonly number[],
  columns?: readonly number[],
): Promise<void> {
  const width = axisFromEnd(x.shape, 1);
  const row = new Float32Array(width);
  const order = Uint32Array.from(columns ?? []);
  let copied = 0;
  for (const [to, from] of rows.entries()) {
    readElements(backend, x, from * width, row);
    for (let i = 0; i < order.length; i++) row[i] = row[order[i] as number] as number;
    writeElements(backend, x, to * width, columns === undefined ? row : row.subarray(0, order.length));
    copied += width;
    if (copied < COPIED_AT_ONCE) continue;
    copied = 0;
    await rest();
  }
}
