import { F16_LARGEST, notFinite } from "../checkpoint/finite.js";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf, DTYPE_ID, dataBytes, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError, UsageError } from "../system/errors.js";

/** Conversions between stored types, on native threads so that the event loop stays free. */

/** Calls a native function on another thread. */
const onThread = <T>(native: { readonly async: (...args: unknown[]) => void }, ...args: unknown[]): Promise<T> =>
  new Promise((resolve, reject) => {
    native.async(...args, (error: unknown, result: T) => (error ? reject(error) : resolve(result)));
  });

const areFinite = (dtype: StoredDType, bytes: Uint8Array): Promise<boolean> =>
  onThread<boolean>(loadFunctions().ggml_validate_row_data, DTYPE_ID[dtype], bytes, bytes.byteLength);

/** Memory for reuse: fresh memory costs a page fault for every 4 KiB, which takes as long as converting it. */
export class Scratch {
  private readonly free = new Map<number, ArrayBuffer[]>();

  take(bytes: number): ArrayBuffer {
    return this.free.get(bytes)?.pop() ?? new ArrayBuffer(bytes);
  }

  give(data: NodeJS.ArrayBufferView): void {
    const { buffer } = data;
    if (!(buffer instanceof ArrayBuffer)) return;
    const same = this.free.get(buffer.byteLength) ?? [];
    same.push(buffer);
    this.free.set(buffer.byteLength, same);
  }
}

async function toFloats(
  bytes: Uint8Array,
  dtype: StoredDType,
  elements: number,
  scratch: Scratch,
): Promise<Float32Array> {
  const f = loadFunctions();
  if (dtype === "f32") return toFloat32(f, bytes, dtype);
  const values = new Float32Array(scratch.take(4 * elements));
  const aligned = bytes.byteOffset % 2 === 0 ? bytes : bytes.slice();
  if (isQuantized(dtype)) await onThread(f.dequantize[dtype], aligned, values, elements);
  else if (dtype === "bf16") await onThread(f.ggml_bf16_to_fp32_row, aligned, values, elements);
  else await onThread(f.ggml_fp16_to_fp32_row, aligned, values, elements);
  return values;
}

const largestMagnitude = (values: Float32Array): number =>
  values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);

/** What to do about values that a type cannot hold. */
const advice = (dtype: StoredDType): string => {
  if (dtype === "bf16") return "";
  return `${dtype === "f16" ? ` (its largest is ${F16_LARGEST})` : ""}: choose bf16 or f32`;
};

export interface Conversion {
  /** The tensor's name, for messages. */
  readonly name: string;
  readonly from: StoredDType;
  readonly to: StoredDType;
  /** Elements of a row. */
  readonly columns: number;
  /** How much each column matters, [columns] in f32: quantizing then minimizes the error weighted by it. */
  readonly importance?: Float32Array | undefined;
}

/**
 * Converts whole rows.
 * @param scratch where memory comes from; give the result back to it once it is used
 * @returns the rows in the new type; the same bytes when the type does not change
 * @throws FormatError for values that are not finite, or too large for the new type
 */
export async function convertRows(
  bytes: Uint8Array,
  conversion: Conversion,
  scratch = new Scratch(),
): Promise<Uint8Array> {
  const { name, from, to, columns, importance } = conversion;
  // quantizing NaN or infinity would end the process
  if (!(await areFinite(from, bytes))) throw notFinite(name, from, bytes);
  if (from === to) return bytes;
  const f = loadFunctions();
  const elements = (bytes.byteLength / dataBytes(from, columns)) * columns;
  const values = await toFloats(bytes, from, elements, scratch);
  if (to === "f32") return bytesOf(values);
  const result = new Uint8Array(scratch.take(dataBytes(to, elements)));
  if (isQuantized(to)) {
    if (importance === undefined && f.ggml_quantize_requires_imatrix(DTYPE_ID[to]))
      throw new UsageError(`${name}: ${to} needs to know which inputs matter: give calibration data (--data)`);
    await onThread(
      f.ggml_quantize_chunk,
      DTYPE_ID[to],
      values,
      result,
      0,
      elements / columns,
      columns,
      importance ?? null,
    );
  } else await onThread(to === "bf16" ? f.ggml_fp32_to_bf16_row : f.ggml_fp32_to_fp16_row, values, result, elements);
  if (!(await areFinite(to, result)))
    throw new FormatError(
      `${name} has values up to ${largestMagnitude(values).toPrecision(4)}, which ${to} cannot hold${advice(to)}`,
    );
  if (from !== "f32") scratch.give(values);
  return result;
}
