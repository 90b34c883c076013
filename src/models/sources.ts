import {
  gatherRows,
  rowBytes,
  rowCount,
  type TensorInfo,
  type TensorSource,
  tensorInfo,
} from "../checkpoint/tensor-source.js";
import { bytesOf, DTYPE_BYTES, type FloatDType } from "../ggml/dtype.js";
import { FormatError } from "../system/errors.js";

/** A source with its tensors renamed. @param names from the new name to the source's */
export function renamedSource<S extends TensorInfo["dtype"]>(
  source: TensorSource<S>,
  names: ReadonlyMap<string, string>,
): TensorSource<S> {
  const original = (name: string): string => {
    const found = names.get(name);
    if (found === undefined) throw new FormatError(`the checkpoint has no tensor ${name}`);
    return found;
  };
  return {
    tensors: new Map([...names].map(([name, from]) => [name, tensorInfo(source, from)])),
    readRows: (name, from, to) => source.readRows(original(name), from, to),
    releaseRows: (name, from, to) => source.releaseRows(original(name), from, to),
  };
}

/** The tensors of two sources as one; the first has precedence. */
export function joinedSource<S extends TensorInfo["dtype"]>(
  first: TensorSource<S>,
  second: TensorSource<S>,
): TensorSource<S> {
  const sourceOf = (name: string) => (first.tensors.has(name) ? first : second);
  return {
    tensors: new Map([...second.tensors, ...first.tensors]),
    readRows: (name, from, to) => sourceOf(name).readRows(name, from, to),
    releaseRows: (name, from, to) => sourceOf(name).releaseRows(name, from, to),
  };
}

/** A source with the named matrices transposed. They must be plain floats: quantized rows cannot be split. */
export function transposedSource<S extends TensorInfo["dtype"]>(
  source: TensorSource<S>,
  transposed: ReadonlySet<string>,
): TensorSource<S> {
  if (transposed.size === 0) return source;
  const tensors = new Map(
    [...source.tensors].map(([name, info]) => [
      name,
      transposed.has(name) ? { ...info, shape: info.shape.toReversed() } : info,
    ]),
  );
  return {
    tensors,
    readRows: (name, from, to) =>
      transposed.has(name) ? columnsOf(source, name, from, to) : source.readRows(name, from, to),
    releaseRows: (name, from, to) => {
      if (!transposed.has(name)) source.releaseRows(name, from, to);
    },
  };
}

/** The columns [from, to) of a matrix, as rows. */
function columnsOf(source: TensorSource, name: string, from: number, to: number): Uint8Array {
  const info = tensorInfo(source, name);
  const bytes = DTYPE_BYTES[info.dtype as FloatDType];
  const rows = rowCount(info);
  const result = new Uint8Array((to - from) * rows * bytes);
  const width = rowBytes(info);
  const stored = source.readRows(name, 0, rows);
  for (let column = from; column < to; column++)
    for (let row = 0; row < rows; row++) {
      const at = row * width + column * bytes;
      result.set(stored.subarray(at, at + bytes), ((column - from) * rows + row) * bytes);
    }
  return result;
}

/** f32 tensors in memory. */
export function memorySource(
  values: ReadonlyMap<string, { readonly shape: readonly number[]; readonly values: Float32Array }>,
): TensorSource<FloatDType> {
  const tensors = new Map([...values].map(([name, { shape }]) => [name, { dtype: "f32" as const, shape }]));
  return {
    tensors,
    readRows: (name, from, to) => {
      const width = rowBytes(tensorInfo({ tensors }, name));
      return bytesOf(values.get(name)?.values ?? new Float32Array()).subarray(from * width, to * width);
    },
    releaseRows: () => {},
  };
}

/** A tensor within another source: rows of one of its tensors in some order, with an offset on every element. */
export interface Place {
  readonly name: string;
  /** Row i is row `rows[i]` there; in the same order where undefined. */
  readonly rows: Uint32Array | undefined;
  /** Added to every element, f32 only. */
  readonly offset: number | undefined;
}

/** Tensors that are read from places in another source. */
export function placedSource(source: TensorSource, places: ReadonlyMap<string, Place>): TensorSource {
  const placeOf = (name: string): Place => {
    const place = places.get(name);
    if (place === undefined) throw new FormatError(`the checkpoint has no tensor ${name}`);
    return place;
  };
  const tensors = new Map<string, TensorInfo>();
  for (const [name, { name: from, rows, offset }] of places) {
    const info = tensorInfo(source, from);
    if (offset !== undefined && info.dtype !== "f32")
      throw new FormatError(`${from} is ${info.dtype}; gains are f32 in GGUF files`);
    tensors.set(name, rows === undefined ? info : { ...info, shape: [rows.length, ...info.shape.slice(1)] });
  }
  return {
    tensors,
    readRows: (name, from, to) => {
      const { name: stored, rows, offset } = placeOf(name);
      const bytes =
        rows === undefined ? source.readRows(stored, from, to) : gatherRows(source, stored, rows.subarray(from, to));
      return offset === undefined ? bytes : added(bytes, offset);
    },
    releaseRows: (name, from, to) => {
      const { name: stored, rows } = placeOf(name);
      if (rows === undefined) source.releaseRows(stored, from, to);
      else if (to > from)
        source.releaseRows(stored, lowest(rows.subarray(from, to)), highest(rows.subarray(from, to)) + 1);
    },
  };
}

const lowest = (rows: Uint32Array): number => rows.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
const highest = (rows: Uint32Array): number => rows.reduce((a, b) => Math.max(a, b), 0);

function added(bytes: Uint8Array, offset: number): Uint8Array {
  const values = new Float32Array(bytes.slice().buffer).map((value) => value + offset);
  return new Uint8Array(values.buffer);
}

/** The inverse of a permutation of rows. */
export function inverted(rows: Uint32Array): Uint32Array {
  const result = new Uint32Array(rows.length);
  rows.forEach((row, i) => {
    result[row] = i;
  });
  return result;
}
