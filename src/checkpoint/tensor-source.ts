import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import { dataBytes, type FloatDType, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError } from "../system/errors.js";
import { checkFinite } from "./finite.js";

/** A stored tensor's type, and its shape, outermost axis first. */
export interface TensorInfo<D extends StoredDType = StoredDType> {
  readonly dtype: D;
  readonly shape: readonly number[];
}

/**
 * Tensors by name, read some rows at a time: a file on disk, or a source derived from another (pruned). Nothing is read before it
 * is requested.
 */
export interface TensorSource<D extends StoredDType = StoredDType> {
  readonly tensors: ReadonlyMap<string, TensorInfo<D>>;
  /** Little-endian elements of the rows [from, to) of the first axis. May be a view of a mapped file: read-only. */
  readRows(name: string, from: number, to: number): Uint8Array;
  /** Lets these rows leave resident memory: they are not needed for now. */
  releaseRows(name: string, from: number, to: number): void;
}

/** The type and shape of one tensor. @throws FormatError when the source has none of that name */
export function tensorInfo<D extends StoredDType>(
  source: Pick<TensorSource<D>, "tensors">,
  name: string,
): TensorInfo<D> {
  const info = source.tensors.get(name);
  if (info === undefined) throw new FormatError(`the checkpoint has no tensor ${name}`);
  return info;
}

/** Bytes of one row: of all axes but the first. */
export const rowBytes = ({ dtype, shape }: TensorInfo): number =>
  dataBytes(
    dtype,
    shape.slice(1).reduce((product, size) => product * size, 1),
  );

/** Rows of a tensor: the size of its first axis, or 1 for a scalar. */
export const rowCount = ({ shape }: Pick<TensorInfo, "shape">): number => shape[0] ?? 1;

/** Bytes of a whole tensor. */
export const tensorBytes = (info: TensorInfo): number => rowBytes(info) * rowCount(info);

/** Bytes of all tensors of a source. */
export const sourceBytes = (source: Pick<TensorSource, "tensors">): number =>
  [...source.tensors.values()].reduce((total, info) => total + tensorBytes(info), 0);

/** Splits tensors, in order, into files of at most `limit` bytes; a larger tensor has a file of its own. */
export function splitIntoShards<T extends TensorInfo>(tensors: readonly T[], limit: number): T[][] {
  const shards: T[][] = [[]];
  let size = 0;
  for (const tensor of tensors) {
    if (size > 0 && size + tensorBytes(tensor) > limit) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)?.push(tensor);
    size += tensorBytes(tensor);
  }
  return shards;
}

/** How much of a tensor is read at a time. */
const BLOCK_BYTES = 16 << 20;

/**
 * Reads a tensor in blocks of rows, releasing each when the next is asked for.
 * @throws FormatError for elements that are not finite
 */
export function* blocks(
  source: TensorSource,
  name: string,
): Generator<{ readonly row: number; readonly bytes: Uint8Array }> {
  const info = tensorInfo(source, name);
  const rows = rowCount(info);
  const step = Math.max(1, Math.floor(BLOCK_BYTES / Math.max(1, rowBytes(info))));
  for (let row = 0; row < rows; row += step) {
    const end = Math.min(rows, row + step);
    const bytes = source.readRows(name, row, end);
    checkFinite(name, info.dtype, bytes, { row, columns: info.shape.slice(1).reduce((a, b) => a * b, 1) });
    yield { row, bytes };
    source.releaseRows(name, row, end);
  }
}

/** Whether two tensors are equal bit by bit. */
export function sameTensor(source: TensorSource, a: string, b: string): boolean {
  const [first, second] = [tensorInfo(source, a), tensorInfo(source, b)];
  if (first.dtype !== second.dtype || first.shape.join() !== second.shape.join()) return false;
  const others = blocks(source, b);
  for (const { bytes } of blocks(source, a)) {
    const other = others.next();
    if (other.done || Buffer.compare(bytes, other.value.bytes) !== 0) return false;
  }
  return true;
}

/** A whole tensor in memory, copied. */
export function readTensor(source: TensorSource, name: string): Uint8Array {
  const info = tensorInfo(source, name);
  const result = new Uint8Array(tensorBytes(info));
  const width = rowBytes(info);
  for (const { row, bytes } of blocks(source, name)) result.set(bytes, row * width);
  return result;
}

/** The type of quantized weights where a format, or a computation in f32, needs plain floats; bf16 would be too coarse. */
export const EXPANDED_DTYPE = "f16";

/** The same tensors as plain floats: quantized ones are dequantized as they are read. */
export function floatSource(source: TensorSource): TensorSource<FloatDType> {
  const tensors = new Map<string, TensorInfo<FloatDType>>();
  for (const [name, { dtype, shape }] of source.tensors)
    tensors.set(name, { dtype: isQuantized(dtype) ? EXPANDED_DTYPE : dtype, shape });
  return {
    tensors,
    readRows: (name, from, to) => {
      const bytes = source.readRows(name, from, to);
      const { dtype } = tensorInfo(source, name);
      if (!isQuantized(dtype)) return bytes;
      const functions = loadFunctions();
      return fromFloat32(functions, toFloat32(functions, bytes, dtype), EXPANDED_DTYPE);
    },
    releaseRows: (name, from, to) => source.releaseRows(name, from, to),
  };
}

/** The rows of a tensor that `order` lists, in that order. */
export function gatherRows(source: TensorSource, name: string, order: Uint32Array): Uint8Array {
  const width = rowBytes(tensorInfo(source, name));
  const lowest = order.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  const highest = order.reduce((a, b) => Math.max(a, b), 0);
  const rows = source.readRows(name, lowest, highest + 1);
  const result = new Uint8Array(order.length * width);
  order.forEach((row, i) => {
    result.set(rows.subarray((row - lowest) * width, (row - lowest + 1) * width), i * width);
  });
  return result;
}
