import { F16_LARGEST, notFinite } from "../checkpoint/finite.js";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf, DTYPE_ID, dataBytes, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError, UsageError } from "../system/errors.js";

/** Conversions between stored types, on native threads: the event loop stays free. */

/** A call of a native function on another thread. */
const onThread = <T>(native: { readonly async: (...args: unknown[]) => void }, ...args: unknown[]): Promise<T> =>
  new Promise((resolve, reject) => {
    native.async(...args, (error: unknown, result: T) => (error ? reject(error) : resolve(result)));
  });

const areNumbers = (dtype: StoredDType, bytes: Uint8Array): Promise<boolean> =>
  onThread<boolean>(loadFunctions().ggml_validate_row_data, DTYPE_ID[dtype], bytes, bytes.byteLength);

/** Memory that is used again and again: fresh memory costs a page fault for every 4 KiB, as much as converting it. */
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

const largest = (values: Float32Array): number => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

export interface Conversion {
  /** For messages. */
  readonly name: string;
  readonly from: StoredDType;
  readonly to: StoredDType;
  /** Elements of a row. */
  readonly columns: number;
  /** How much each column matters; f32, one per column. Where given, quantizing minimises the error weighted so. */
  readonly importance?: Float32Array | undefined;
}

/**
 * Converts whole rows.
 * @param scratch where memory comes from; what is returned may be given back to it once it is used
 * @returns the rows in the new type; the same bytes when it is the old
 * @throws FormatError for values that are no numbers, or too large for the new type
 */
export async function convertRows(
  bytes: Uint8Array,
  conversion: Conversion,
  scratch = new Scratch(),
): Promise<Uint8Array> {
  const { name, from, to, columns, importance } = conversion;
  // NaN and infinity: quantizing would end the process over them
  if (!(await areNumbers(from, bytes))) throw notFinite(name, from, bytes);
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
  if (!(await areNumbers(to, result)))
    throw new FormatError(
      `${name} has values up to ${largest(values).toPrecision(4)}, which ${to} cannot hold${to === "bf16" ? "" : `${to === "f16" ? ` (its largest is ${F16_LARGEST})` : ""}: choose bf16 or f32`}`,
    );
  if (from !== "f32") scratch.give(values);
  return result;
}
