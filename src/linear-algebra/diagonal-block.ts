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
    const row = i * size;
    for (let j = 0; j < i; j++) {
      const other = j * size;
      a[row + j] = ((a[row + j] ?? 0) - dot(a, row, other, j)) / (a[other + j] ?? 0);
    }
    const pivot = (a[row + i] ?? 0) - dot(a, row, row, i);
    if (!(pivot > 0 && pivot < Number.POSITIVE_INFINITY)) return { row: i, pivot };
    a[row + i] = Math.sqrt(pivot);
  }
  return undefined;
}

/** The sum of the products of `count` elements from two offsets on. Two sums at a time, since each waits for its last addition. */
function dot(a: Float64Array, from: number, other: number, count: number): number {
  let even = 0;
  let odd = 0;
  const pairs = count - (count % 2);
  for (let k = 0; k < pairs; k += 2) {
    even += (a[from + k] ?? 0) * (a[other + k] ?? 0);
    odd += (a[from + k + 1] ?? 0) * (a[other + k + 1] ?? 0);
  }
  if (pairs < count) even += (a[from + pairs] ?? 0) * (a[other + pairs] ?? 0);
  return even + odd;
}

/** L⁻¹ of a lower triangular block L [size, size], with zeros above its diagonal. Reads the lower triangle only. */
export function invertLower(l: Float64Array, size: number): Float64Array {
  const inverse = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    const row = i * size;
    for (let k = 0; k < i; k++) {
      const factor = l[row + k] ?? 0;
      const other = k * size;
      for (let j = 0; j <= k; j++) inverse[row + j] = (inverse[row + j] ?? 0) - factor * (inverse[other + j] ?? 0);
    }
    const scale = 1 / (l[row + i] ?? 0);
    for (let j = 0; j < i; j++) inverse[row + j] = (inverse[row + j] ?? 0) * scale;
    inverse[row + i] = scale;
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
