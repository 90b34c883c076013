import { FormatError } from "../system/errors.js";
import { bytesOf, type DType, elementsIn, type FloatDType, isQuantized, typedView } from "./dtype.js";
import type { Functions } from "./functions.js";

/** Converts stored elements to f32. Returns a view of the same bytes when they are f32 already. @throws FormatError for i32 */
export function toFloat32(functions: Functions, bytes: Uint8Array, dtype: DType): Float32Array {
  if (dtype === "f32") {
    const words = typedView(bytes, 4);
    return new Float32Array(words.buffer, words.byteOffset, words.length);
  }
  if (dtype === "i32") throw new FormatError("expected floating-point numbers, found i32");
  if (isQuantized(dtype)) {
    const values = new Float32Array(elementsIn(dtype, bytes.byteLength));
    functions.dequantize[dtype](bytes, values, values.length);
    return values;
  }
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
