import type { Matrix, MultiplyOptions } from "../../src/linear-algebra/index.js";
import { Random } from "../../src/system/random.js";

/** Standard normal numbers. */
export function randomMatrix(rows: number, columns: number, seed: number): Matrix {
  const random = new Random(seed);
  return { rows, columns, data: Float32Array.from({ length: rows * columns }, () => random.normal()) };
}

/** The product in f64, by its definition. */
export function product(
  a: Matrix,
  b: Matrix,
  { transposeA = false, transposeB = false }: MultiplyOptions = {},
): Float64Array {
  const [rows, inner] = transposeA ? [a.columns, a.rows] : [a.rows, a.columns];
  const columns = transposeB ? b.rows : b.columns;
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++)
    for (let k = 0; k < inner; k++) {
      const left = a.data[transposeA ? k * a.columns + i : i * a.columns + k]!;
      const [first, stride] = transposeB ? [k, b.columns] : [k * b.columns, 1];
      for (let j = 0; j < columns; j++) result[i * columns + j]! += left * b.data[first + j * stride]!;
    }
  return result;
}

/**
 * A symmetric positive definite matrix whose eigenvalues fall from 1 to 1 / condition, evenly in their logarithms: Q D Qᵀ, where Q
 * is a product of two reflections.
 */
export function positiveDefinite(size: number, condition: number, seed: number): Matrix {
  const full = new Float64Array(size * size);
  for (let i = 0; i < size; i++) full[i * size + i] = condition ** (-i / Math.max(1, size - 1));
  for (const reflection of [0, 1]) reflect(full, size, randomMatrix(size, 1, seed + reflection).data);
  return { rows: size, columns: size, data: Float32Array.from(full) };
}

/** a becomes H a H, with H = I − 2 v vᵀ / vᵀv. */
function reflect(a: Float64Array, size: number, v: Float32Array): void {
  const square = v.reduce((sum, value) => sum + value * value, 0);
  const at = Float64Array.from({ length: size }, (_, i) =>
    v.reduce((sum, value, j) => sum + value * (a[i * size + j] ?? 0), 0),
  );
  const both = at.reduce((sum, value, i) => sum + value * (v[i] ?? 0), 0);
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) {
      const [vi, vj] = [v[i] ?? 0, v[j] ?? 0];
      const change = (2 * (vi * (at[j] ?? 0) + (at[i] ?? 0) * vj)) / square - (4 * both * vi * vj) / square ** 2;
      a[i * size + j] = (a[i * size + j] ?? 0) - change;
    }
}

/** The matrix with `ridge` added to its diagonal. */
export function plusRidge(a: Matrix, ridge: number): Matrix {
  const data = Float32Array.from(a.data);
  for (let i = 0; i < a.rows; i++) data[i * a.rows + i] = (data[i * a.rows + i] ?? 0) + ridge;
  return { ...a, data };
}

/** The Frobenius norm. */
export const norm = (values: ArrayLike<number>): number => Math.sqrt(Array.from(values).reduce((s, x) => s + x * x, 0));
