import type { Backend } from "../ggml/device.js";
import { ShapeError } from "../system/errors.js";
import { type Tensor, TensorStore } from "../tensor/index.js";
import { runOnce, times, timesTransposed, transposed } from "./device.js";
import { blockOf, checkMatrix, type Matrix, setBlock, zeroMatrix } from "./matrix.js";

export interface MultiplyOptions {
  readonly transposeA?: boolean | undefined;
  readonly transposeB?: boolean | undefined;
}

/** Rows of the result that are computed at once. */
const ROWS = 1024;

/**
 * a b, or with either transposed, on the device; products and sums in f32. The device holds b, and 1024 rows of the result and of
 * the left operand at a time.
 * @throws ShapeError when the inner sizes differ
 */
export async function multiply(
  backend: Backend,
  a: Matrix,
  b: Matrix,
  { transposeA = false, transposeB = false }: MultiplyOptions = {},
): Promise<Matrix> {
  checkMatrix("the left matrix", a);
  checkMatrix("the right matrix", b);
  const [size, inner] = transposeA ? [a.columns, a.rows] : [a.rows, a.columns];
  const [innerB, columns] = transposeB ? [b.columns, b.rows] : [b.rows, b.columns];
  if (inner !== innerB)
    throw new ShapeError(
      `a ${a.rows} x ${a.columns} matrix${transposeA ? ", transposed," : ""} cannot be multiplied by ` +
        `one of ${b.rows} x ${b.columns}${transposeB ? ", transposed" : ""}: inner sizes are ${inner} and ${innerB}`,
    );
  const result = zeroMatrix(size, columns);
  const rows = Math.min(ROWS, size);
  const tensors = new TensorStore(backend, 1);
  try {
    const right = tensors.add("right", [b.rows, b.columns], "f32");
    tensors.allocate().write(right, b.data);
    await runOnce(backend, async (g) => {
      const left = g.input("left", "f32", transposeA ? [inner, rows] : [rows, inner]);
      const upright: Tensor = transposeA ? transposed(g, left) : left;
      const product = g.output(transposeB ? timesTransposed(g, upright, right) : times(g, upright, right));
      for (let row = 0; row < size; row += rows) {
        g.write(left, leftRows(a, transposeA, row, rows));
        await g.run();
        setBlock(result, row, 0, { rows, columns, data: g.read(product) });
      }
    });
    return result;
  } finally {
    tensors.free();
  }
}

/** Rows [row, row + count) of a, or as many columns where it is transposed; zeros past its end. */
function leftRows(a: Matrix, transpose: boolean, row: number, count: number): Float32Array {
  const [rows, columns] = transpose
    ? [a.rows, Math.min(count, a.columns - row)]
    : [Math.min(count, a.rows - row), a.columns];
  const range = transpose ? { row: 0, column: row, rows, columns } : { row, column: 0, rows, columns };
  const full = transpose ? zeroMatrix(a.rows, count) : zeroMatrix(count, a.columns);
  setBlock(full, 0, 0, blockOf(a, range));
  return full.data;
}
