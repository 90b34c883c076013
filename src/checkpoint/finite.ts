import { toFloat32 } from "../ggml/convert.js";
import { bytesOf, DTYPE_ID, type FloatDType, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError } from "../system/errors.js";

/** The largest number that f16 holds. */
export const F16_LARGEST = 65504;

/**
 * Checks that stored elements are finite: a single NaN or infinity silently makes all of a model's results wrong.
 * @param name of the tensor, for the message
 * @param place where the bytes begin: their first row, and the number of columns
 * @throws FormatError naming the tensor and the first element
 */
export function checkFinite(
  name: string,
  dtype: StoredDType,
  bytes: Uint8Array,
  place?: { readonly row: number; readonly columns: number },
): void {
  if (loadFunctions().ggml_validate_row_data(DTYPE_ID[dtype], bytes, bytes.byteLength)) return;
  throw notFinite(name, dtype, bytes, place);
}

/** Whether all numbers are finite. */
export const areFinite = (values: Float32Array): boolean =>
  loadFunctions().ggml_validate_row_data(DTYPE_ID.f32, bytesOf(values), values.byteLength);

/** The error for a tensor that {@link checkFinite} rejects. */
export function notFinite(
  name: string,
  dtype: StoredDType,
  bytes: Uint8Array,
  place?: { readonly row: number; readonly columns: number },
): FormatError {
  const values = isQuantized(dtype) || place === undefined ? undefined : toFloat32(loadFunctions(), bytes, dtype);
  const at = values?.findIndex((value) => !Number.isFinite(value)) ?? -1;
  const where =
    at < 0 || place === undefined
      ? "NaN or infinite values"
      : `${values?.[at]} at row ${place.row + Math.floor(at / place.columns)}, column ${at % place.columns}`;
  return new FormatError(`${name} holds ${where}: the file is damaged, or the training run that wrote it diverged`);
}

/** Whether f16 can hold every element. */
export function fitsF16(bytes: Uint8Array, dtype: FloatDType): boolean {
  return toFloat32(loadFunctions(), bytes, dtype).every((value) => Math.abs(value) < F16_LARGEST + 16); // rounds to infinity from there on
}
