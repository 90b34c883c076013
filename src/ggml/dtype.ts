import { FormatError } from "../system/errors.js";
import type { Functions } from "./functions.js";

/** Element types that tensors are computed and stored in. Quantized types live in GGUF files. */
export type DType = "f32" | "f16" | "bf16" | "i32";

export const DTYPE_ID: Record<DType, number> = { f32: 0, f16: 1, i32: 26, bf16: 30 };
export const DTYPE_BYTES: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4 };
export type FloatDType = Exclude<DType, "i32">;

/** The bytes of `data` without copying. */
export function bytesOf(data: NodeJS.ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** Bytes as a typed array over them; copied only if they are not aligned. */
export function typedView(bytes: Uint8Array, elementBytes: 2): Uint16Array;
export function typedView(bytes: Uint8Array, elementBytes: 4): Uint32Array;
export function typedView(bytes: Uint8Array, elementBytes: 2 | 4): Uint16Array | Uint32Array;
export function typedView(bytes: Uint8Array, elementBytes: 2 | 4): Uint16Array | Uint32Array {
  const aligned = bytes.byteOffset % elementBytes === 0 ? bytes : bytes.slice();
  const count = Math.floor(aligned.byteLength / elementBytes);
  return elementBytes === 2
    ? new Uint16Array(aligned.buffer, aligned.byteOffset, count)
    : new Uint32Array(aligned.buffer, aligned.byteOffset, count);
}

/** Converts stored elements to f32. A view of the same bytes when they are f32 already. */
export function toFloat32(functions: Functions, bytes: Uint8Array, dtype: DType): Float32Array {
  if (dtype === "f32") {
    const words = typedView(bytes, 4);
    return new Float32Array(words.buffer, words.byteOffset, words.length);
  }
  if (dtype === "i32") throw new FormatError("i32 data where floating-point numbers were expected");
  const halves = typedView(bytes, 2);
  const result = new Float32Array(halves.length);
  if (dtype === "bf16") functions.ggml_bf16_to_fp32_row(halves, result, halves.length);
  else functions.ggml_fp16_to_fp32_row(halves, result, halves.length);
  return result;
}

/** Converts f32 to stored elements, rounding to nearest even. */
export function fromFloat32(functions: Functions, values: Float32Array, dtype: FloatDType): Uint8Array {
  if (dtype === "f32") return bytesOf(values);
  const result = new Uint16Array(values.length);
  if (dtype === "bf16") functions.ggml_fp32_to_bf16_row(values, result, values.length);
  else functions.ggml_fp32_to_fp16_row(values, result, values.length);
  return bytesOf(result);
}
