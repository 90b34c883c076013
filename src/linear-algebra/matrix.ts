import { ShapeError } from "../system/errors.js";

/** A dense matrix on the host, row by row. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  /** rows · columns numbers. */
  readonly data: Float32Array;
}

/** A matrix of zeros. */
export const zeroMatrix = (rows: number, columns: number): Matrix => ({
  rows,
  columns,
  data: new Float32Array(rows * columns),
});

/** @throws ShapeError when the sizes are not positive integers, or the data has another number of elements */
export function checkMatrix(name: string, { rows, columns, data }: Matrix): void {
  const positive = [rows, columns].every((size) => Number.isSafeInteger(size) && size > 0);
  if (!positive || data.length !== rows * columns)
    throw new ShapeError(`${name}: ${data.length} numbers are not a matrix of ${rows} rows and ${columns} columns`);
}

/** @throws ShapeError when a matrix is not square, or not a matrix at all */
export function checkSquare(name: string, matrix: Matrix): void {
  checkMatrix(name, matrix);
  if (matrix.rows !== matrix.columns)
    throw new ShapeError(`${name} must be square: it has ${matrix.rows} rows and ${matrix.columns} columns`);
}

/** A block of a matrix: rows [row, row + rows), columns [column, column + columns). */
export interface Range {
  readonly row: number;
  readonly column: number;
  readonly rows: number;
  readonly columns: number;
}

/** A copy of a block. */
export function blockOf(matrix: Matrix, { row, column, rows, columns }: Range): Matrix {
  const data = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    const from = (row + i) * matrix.columns + column;
    data.set(matrix.data.subarray(from, from + columns), i * columns);
  }
  return { rows, columns, data };
}

/** Writes `block` into a matrix, its first element at [row, column]; what lies outside of the matrix is left out. */
export function setBlock(matrix: Matrix, row: number, column: number, block: Matrix): void {
  const columns = Math.min(block.columns, matrix.columns - column);
  const rows = Math.min(block.rows, matrix.rows - row);
  for (let i = 0; i < rows; i++) {
    const from = i * block.columns;
    matrix.data.set(block.data.subarray(from, from + columns), (row + i) * matrix.columns + column);
  }
}

/** A symmetric matrix whose lower triangle is given; what lies above the diagonal is written over. @param data row by row */
export function symmetric(size: number, data: Float32Array): Matrix {
  const matrix: Matrix = { rows: size, columns: size, data };
  checkMatrix("a symmetric matrix", matrix);
  for (let i = 0; i < size; i++) for (let j = 0; j < i; j++) data[j * size + i] = data[i * size + j] as number;
  return matrix;
}

/** A matrix with rows and columns swapped. */
export function transpose({ rows, columns, data }: Matrix): Matrix {
  const swapped = new Float32Array(data.length);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) swapped[j * rows + i] = data[i * columns + j] as number;
  return { rows: columns, columns: rows, data: swapped };
}

/** The mean of a square matrix's diagonal. */
export const meanDiagonal = ({ rows, data }: Matrix): number =>
  meanOf(Float32Array.from({ length: rows }, (_, i) => data[i * (rows + 1)] as number));

/** The mean of numbers, summed in f64. */
export const meanOf = (values: Float32Array): number => values.reduce((sum, value) => sum + value, 0) / values.length;
