import type { Backend } from "../ggml/device.js";
import { Cholesky, type Matrix, meanDiagonal, meanOf } from "../linear-algebra/index.js";
import type { Gram } from "../prune/gram.js";

/** The weight of the starting point, as a share of the mean diagonal of X'X: 0.01 to 0.1 served alike. */
export const DAMPING = 0.1;

/**
 * Regressions on the same inputs: W = argmin ‖X Wᵀ - Y‖² + λ ‖W - W0‖² with λ = 0.1 · the mean diagonal of XᵀX, in closed form
 * W = (YᵀX + λ W0) (XᵀX + λ I)⁻¹. Free it after use.
 */
export class Ridge {
  private constructor(
    private readonly factor: Cholesky | undefined,
    private readonly ridge: number,
  ) {}

  /** @param inputs XᵀX, [inputs, inputs] */
  static async of(backend: Backend, inputs: Matrix): Promise<Ridge> {
    const ridge = DAMPING * meanDiagonal(inputs);
    return new Ridge(ridge > 0 ? await Cholesky.factor(backend, inputs, { ridge }) : undefined, ridge);
  }

  /** The same of moments on the device, which are overwritten and must outlive it. */
  static async overwrite(backend: Backend, moments: Gram): Promise<Ridge> {
    const ridge = DAMPING * meanOf(moments.diagonal());
    return new Ridge(ridge > 0 ? await Cholesky.overwrite(backend, moments.sums, { ridge }) : undefined, ridge);
  }

  /** @param targets YᵀX, [outputs, inputs] @param start W0, the same @returns W */
  async solve(targets: Matrix, start: Matrix): Promise<Matrix> {
    if (this.factor === undefined) return start; // inputs that are all zero tell nothing
    const { ridge } = this;
    const right = targets.data.slice();
    for (let i = 0; i < right.length; i++) right[i] = (right[i] as number) + (start.data[i] as number) * ridge;
    return await this.factor.solve({ ...start, data: right });
  }

  free(): void {
    this.factor?.free();
  }
}
