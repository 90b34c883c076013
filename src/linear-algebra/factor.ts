import type { Backend } from "../ggml/device.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import {
  blockCopy,
  blockOperand,
  diagonalOf,
  readElements,
  runOnce,
  store,
  timesTransposed,
  writeElements,
} from "./device.js";
import { factorBlock, invertLower } from "./diagonal-block.js";
import { meanOf } from "./matrix.js";

export interface CholeskyOptions {
  /** Is added to the diagonal; 0 by default. */
  readonly ridge?: number | undefined;
  /** Is called after each panel of columns. Later panels take longer, the longest are those in the middle. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** A factorization on the device, panel by panel of columns. */
export interface Factor {
  readonly backend: Backend;
  readonly size: number;
  /** The matrix to factor, [size, size], and L below its diagonal blocks as that is found; diagonal blocks stay the matrix's. */
  readonly lower: Tensor;
  /** L_pp⁻¹ of each diagonal block. [panels · PANEL, PANEL] */
  readonly inverses: Tensor;
  readonly panels: readonly Panel[];
}

/** Columns [from, to) of the matrix. */
export interface Panel {
  readonly from: number;
  readonly to: number;
  readonly width: number;
}

/** Columns in a panel. Wider panels make better products, and more work for the host: 128 was as fast as any from 576 to 4096 rows. */
export const PANEL = 128;

/** Declares what the factorization of a matrix takes beside that in a store. @param lower the matrix, which is overwritten */
export function declareFactor(tensors: TensorStore, lower: Tensor): Factor {
  const [size = 0] = lower.shape;
  const panels = Array.from({ length: Math.ceil(size / PANEL) }, (_, i): Panel => {
    const from = i * PANEL;
    const to = Math.min(from + PANEL, size);
    return { from, to, width: to - from };
  });
  return {
    backend: tensors.backend,
    size,
    lower,
    inverses: tensors.add("inverses", [panels.length * PANEL, PANEL], "f32"),
    panels,
  };
}

/** The inverse of a panel's diagonal block of L. */
export const diagonalInverse = (g: Graph, { inverses }: Factor, { from, width }: Panel): Tensor =>
  blockOperand(g, inverses, { row: from, column: 0, rows: width, columns: width });

/** L below a panel's diagonal block. */
export const belowPanel = (g: Graph, { lower, size }: Factor, { from, to, width }: Panel): Tensor =>
  blockOperand(g, lower, { row: to, column: from, rows: size - to, columns: width });

/** Computes the factorization of the matrix + ridge · I. @throws CoppiceError when that is not positive definite */
export async function factorPanels(factor: Factor, { ridge = 0, onProgress }: CholeskyOptions): Promise<void> {
  const { backend, size, panels } = factor;
  const work = new TensorStore(backend, 1);
  try {
    const reduced = work.add("reduced", [size, PANEL], "f32");
    work.allocate();
    let previous: Panel | undefined;
    for (const [i, panel] of panels.entries()) {
      await reducePanel(factor, reduced, panel, previous);
      factorDiagonal(factor, reduced, panel, ridge);
      previous = panel;
      onProgress?.(i + 1, panels.length);
    }
  } finally {
    work.free();
  }
}

/**
 * Computes the previous panel of L below its diagonal block from its reduced columns, and then reduces this panel:
 * A[from.., panel] − L[from.., ..from] L[panel, ..from]ᵀ, one computation for both.
 */
function reducePanel(
  factor: Factor,
  reduced: Tensor,
  { from, width }: Panel,
  previous: Panel | undefined,
): Promise<void> {
  const { lower } = factor;
  const rows = factor.size - from;
  return runOnce(factor.backend, async (g) => {
    const original = blockCopy(g, lower, { row: from, column: from, rows, columns: width });
    let value = original;
    if (previous !== undefined) {
      const range = { row: previous.width, column: 0, rows, columns: previous.width };
      const solved = timesTransposed(g, blockOperand(g, reduced, range), diagonalInverse(g, factor, previous));
      store(g, solved, lower, { row: from, column: previous.from, rows, columns: previous.width });
      const done = blockOperand(g, lower, { row: from, column: 0, rows, columns: from });
      const beside = blockOperand(g, lower, { row: from, column: 0, rows: width, columns: from });
      value = ops.sub(g, original, timesTransposed(g, done, beside));
    }
    store(g, value, reduced, { row: 0, column: 0, rows, columns: width });
    await g.run();
  });
}

/** Factors and inverts a panel's diagonal block on the host. */
function factorDiagonal(factor: Factor, reduced: Tensor, { from, width }: Panel, ridge: number): void {
  const { backend, inverses } = factor;
  const rows = new Float32Array(width * PANEL);
  readElements(backend, reduced, 0, rows);
  const diagonal = new Float64Array(width * width);
  for (let i = 0; i < width; i++) {
    diagonal.set(rows.subarray(i * PANEL, i * PANEL + width), i * width);
    diagonal[i * width + i] = elementAt(diagonal, i * width + i) + ridge;
  }
  const failure = factorBlock(diagonal, width);
  if (failure !== undefined) throw notPositiveDefinite(factor, ridge, from + failure.row, failure.pivot);
  const inverse = invertLower(diagonal, width);
  const padded = new Float32Array(PANEL * PANEL);
  for (let i = 0; i < width; i++) padded.set(inverse.subarray(i * width, (i + 1) * width), i * PANEL);
  writeElements(backend, inverses, from * PANEL, padded);
}

function notPositiveDefinite(
  { backend, size, lower }: Factor,
  ridge: number,
  pivot: number,
  value: number,
): CoppiceError {
  const row = new Float32Array(size);
  for (let i = 0; i <= pivot; i++) {
    // what comes before the first of them is finite in the matrix and in L
    readElements(backend, lower, i * size, row);
    const column = row.subarray(0, i + 1).findIndex((element) => !Number.isFinite(element));
    if (column >= 0)
      return new CoppiceError(
        `the matrix to factor holds a number that is not finite (NaN or infinite) in row ${i}, column ${column} (from 0)`,
      );
  }
  return new CoppiceError(
    `the matrix is not positive definite: pivot ${pivot} of ${size} is ${value.toPrecision(3)} with a ridge of ${ridge}. ` +
      `Use a larger ridge (the mean of its diagonal is ${meanOf(diagonalOf(backend, lower)).toPrecision(3)}; a hundredth of that is usual)`,
  );
}
