import { CoppiceError } from "../system/errors.js";

/** Small dense blocks on the host, in f64. */

/**
 * Factors a symmetric positive definite block in place: its lower triangle becomes that of L, with a = L Lᵀ. Reads the lower
 * triangle only.
 * @param a [size, size]
 * @returns the first pivot that is not a positive number, with its value, if there is one
 */
export function factorBlock(
  a: Float64Array,
  size: number,
): { readonly row: number; readonly pivot: number } | undefined {
  for (let i = 0; i < size; i++) {
    const rowI = a.subarray(i * size, i * size + size);
    for (let j = 0; j < i; j++) {
      const rowJ = a.subarray(j * size, j * size + j + 1);
      rowI[j] = ((rowI[j] ?? 0) - dot(rowI, rowJ, j)) / (rowJ[j] ?? 0);
    }
    const pivot = (rowI[i] ?? 0) - dot(rowI, rowI, i);
    if (!(pivot > 0 && pivot < Number.POSITIVE_INFINITY)) return { row: i, pivot };
    rowI[i] = Math.sqrt(pivot);
  }
  return undefined;
}

/** The sum of the products of the first `count` elements. */
function dot(a: Float64Array, b: Float64Array, count: number): number {
  let sum = 0;
  for (let k = 0; k < count; k++) sum += (a[k] ?? 0) * (b[k] ?? 0);
  return sum;
}

/** L⁻¹ of a lower triangular block L [size, size], with zeros above its diagonal. Reads the lower triangle only. */
export function invertLower(l: Float64Array, size: number): Float64Array {
  const inverse = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    const row = inverse.subarray(i * size, i * size + size);
    for (let k = 0; k < i; k++) {
      const factor = l[i * size + k] ?? 0;
      const other = inverse.subarray(k * size, k * size + k + 1);
      for (let j = 0; j <= k; j++) row[j] = (row[j] ?? 0) - factor * (other[j] ?? 0);
    }
    const scale = 1 / (l[i * size + i] ?? 0);
    for (let j = 0; j < i; j++) row[j] = (row[j] ?? 0) * scale;
    row[i] = scale;
  }
  return inverse;
}

/** The inverse of a symmetric positive definite block [size, size]. @throws CoppiceError when it is not positive definite */
export function inverseOfBlock(a: Float64Array, size: number): Float64Array {
  const factor = a.slice();
  const failure = factorBlock(factor, size);
  if (failure !== undefined)
    throw new CoppiceError(
      `a block of ${size} rows is not positive definite: pivot ${failure.row} is ${failure.pivot}`,
    );
  const lower = invertLower(factor, size);
  const inverse = new Float64Array(size * size);
  for (let i = 0; i < size; i++)
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let k = i; k < size; k++) sum += (lower[k * size + i] ?? 0) * (lower[k * size + j] ?? 0);
      inverse[i * size + j] = sum;
      inverse[j * size + i] = sum;
    }
  return inverse;
}
