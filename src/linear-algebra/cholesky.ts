import type { Backend } from "../ggml/device.js";
import { CoppiceError, ShapeError } from "../system/errors.js";
import { TensorStore } from "../tensor/index.js";
import { type CholeskyOptions, declareFactor, type Factor, factorPanels } from "./factor.js";
import { invert } from "./inverse.js";
import { checkMatrix, checkSquare, type Matrix } from "./matrix.js";
import { type SolveOptions, solveColumns } from "./solve.js";

/**
 * The Cholesky factorization L Lᵀ of a symmetric positive definite matrix, on the backend's device in f32; diagonal blocks are
 * factored and inverted on the host in f64. Blocked and left-looking: Golub & Van Loan, Matrix Computations, 4th edition, 4.2.6.
 *
 * Takes 4 n² bytes on the device for L (822 MB for 14336 rows) and 1.5 KB n more while it factors; on devices without our
 * kernels up to n² bytes more for copies of operands. It keeps a reference to the matrix, which must not change before
 * {@link free}.
 */
export class Cholesky {
  private constructor(
    private readonly matrix: Matrix,
    private readonly ridge: number,
    private readonly tensors: TensorStore,
    private readonly factorization: Factor,
  ) {}

  /**
   * Factors a + ridge · I. Reads the lower triangle only.
   * @throws ShapeError when a is not square, CoppiceError when a + ridge · I is not positive definite in f32, or the device has
   * too little memory
   */
  static async factor(backend: Backend, a: Matrix, { ridge = 0, onProgress }: CholeskyOptions = {}): Promise<Cholesky> {
    checkSquare("the matrix to factor", a);
    if (!(ridge >= 0 && Number.isFinite(ridge))) throw new CoppiceError(`ridge must be 0 or more, not ${ridge}`);
    const tensors = new TensorStore(backend, 2);
    try {
      const factor = declareFactor(tensors, a.rows);
      tensors.allocate();
      await factorPanels(factor, a, { ridge, onProgress });
      return new Cholesky(a, ridge, tensors, factor);
    } catch (error) {
      tensors.free();
      throw error;
    }
  }

  get size(): number {
    return this.factorization.size;
  }

  /**
   * x with (a + ridge · I) x = b. Takes 12 n · min(columns, 2048) bytes on the device, and as many on the host besides x.
   * @param b [size, columns]
   * @throws ShapeError when b has another number of rows
   */
  async solve(b: Matrix, options: SolveOptions = {}): Promise<Matrix> {
    checkMatrix("the right-hand side", b);
    if (b.rows !== this.size)
      throw new ShapeError(`the right-hand side must have ${this.size} rows, as the matrix has, not ${b.rows}`);
    return solveColumns(this.factorization, { a: this.matrix, ridge: this.ridge }, b, options);
  }

  /**
   * (a + ridge · I)⁻¹, symmetric. Takes 4 n² bytes on the device besides the factorization, twice that without our kernels, and
   * 4 n² on the host for the result.
   */
  async inverse(): Promise<Matrix> {
    return invert(this.factorization);
  }

  /** Releases the device's memory. */
  free(): void {
    this.tensors.free();
  }
}
