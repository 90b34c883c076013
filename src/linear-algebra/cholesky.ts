import type { Backend } from "../ggml/device.js";
import { CoppiceError, ShapeError } from "../system/errors.js";
import { type Tensor, TensorStore } from "../tensor/index.js";
import { writeAll } from "./device.js";
import { type CholeskyOptions, declareFactor, type Factor, factorPanels } from "./factor.js";
import { invert } from "./inverse.js";
import { checkMatrix, checkSquare, type Matrix } from "./matrix.js";
import { solveRows } from "./solve.js";

/**
 * The Cholesky factorization L Lᵀ of a symmetric positive definite matrix, on the backend's device in f32; diagonal blocks are
 * factored and inverted on the host in f64. Blocked and left-looking: Golub & Van Loan, Matrix Computations, 4th edition, 4.2.6.
 *
 * L takes the place of the matrix on the device, 4 n² bytes (822 MB for 14336 rows), with 6.5 KB n more while it factors; on devices
 * without our kernels up to n² bytes more for copies of operands, and 4 n² while it is inverted.
 */
export class Cholesky {
  private constructor(
    private readonly tensors: readonly TensorStore[],
    private readonly factorization: Factor,
  ) {}

  /**
   * Factors a + ridge · I, a copy of it. Reads the lower triangle only.
   * @throws ShapeError when a is not square, CoppiceError when a + ridge · I is not positive definite in f32, or the device has
   * too little memory
   */
  static async factor(backend: Backend, a: Matrix, options: CholeskyOptions = {}): Promise<Cholesky> {
    checkSquare("the matrix to factor", a);
    const copy = new TensorStore(backend, 1);
    try {
      const tensor = copy.add("copy", [a.rows, a.columns], "f32");
      copy.allocate();
      await writeAll(backend, tensor, a.data);
      const { tensors, factorization } = await Cholesky.overwrite(backend, tensor, options);
      return new Cholesky([...tensors, copy], factorization);
    } catch (error) {
      copy.free();
      throw error;
    }
  }

  /** The same of a matrix on the device, [n, n] in f32, whose memory the factorization takes until it is freed. */
  static async overwrite(backend: Backend, a: Tensor, options: CholeskyOptions = {}): Promise<Cholesky> {
    const { ridge = 0 } = options;
    if (!(ridge >= 0 && Number.isFinite(ridge))) throw new CoppiceError(`ridge must be 0 or more, not ${ridge}`);
    const tensors = new TensorStore(backend, 1);
    try {
      const factor = declareFactor(tensors, a);
      tensors.allocate();
      await factorPanels(factor, options);
      return new Cholesky([tensors], factor);
    } catch (error) {
      tensors.free();
      throw error;
    }
  }

  get size(): number {
    return this.factorization.size;
  }

  /**
   * x with x (a + ridge · I) = b, row by row. Takes 4 n · min(rows, 1024) bytes on the device and as many on the host, besides x.
   * @param b [rows, size]
   * @throws ShapeError when b has another number of columns
   */
  async solve(b: Matrix): Promise<Matrix> {
    checkMatrix("the right-hand side", b);
    if (b.columns !== this.size)
      throw new ShapeError(`the right-hand side must have ${this.size} columns, as the matrix has, not ${b.columns}`);
    return solveRows(this.factorization, b);
  }

  /**
   * Replaces the factorization, which ends with that, by (a + ridge · I)⁻¹: both triangles.
   * @returns it, [size, size]; it lives until this is freed, or as long as the matrix that was overwritten
   */
  async invert(): Promise<Tensor> {
    await invert(this.factorization);
    return this.factorization.lower;
  }

  /** Releases the device's memory, but for a matrix that was overwritten. */
  free(): void {
    for (const store of this.tensors) store.free();
  }
}
