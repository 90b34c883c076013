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
  readonly groups: readonly PanelGroup[];
}

/** Columns [from, to) of the matrix. */
export interface Panel {
  readonly from: number;
  readonly to: number;
  readonly width: number;
}

/** Panels that are next to each other. What is outside of them takes part in one product for all: operands are packed once for it. */
export interface PanelGroup extends Panel {
  readonly panels: readonly Panel[];
}

/** Columns in a panel. Wider panels make better products, and more work for the host: 128 was as fast as any from 576 to 4096 rows. */
export const PANEL = 128;
/** Columns in a group of panels. */
export const GROUP = 4 * PANEL;

/** Columns [from, to) in parts of a width, the last of which may be narrower. */
function parts(from: number, to: number, width: number): Panel[] {
  return Array.from({ length: Math.ceil((to - from) / width) }, (_, i) => {
    const start = from + i * width;
    const end = Math.min(start + width, to);
    return { from: start, to: end, width: end - start };
  });
}

/** Declares what the factorization of a matrix takes beside that in a store. @param lower the matrix, which is overwritten */
export function declareFactor(tensors: TensorStore, lower: Tensor): Factor {
  const [size = 0] = lower.shape;
  const groups = parts(0, size, GROUP).map((group) => ({ ...group, panels: parts(group.from, group.to, PANEL) }));
  return {
    backend: tensors.backend,
    size,
    lower,
    inverses: tensors.add("inverses", [Math.ceil(size / PANEL) * PANEL, PANEL], "f32"),
    groups,
  };
}

/** The inverse of a panel's diagonal block of L. */
export const diagonalInverse = (g: Graph, { inverses }: Factor, { from, width }: Panel): Tensor =>
  blockOperand(g, inverses, { row: from, column: 0, rows: width, columns: width });

/** L in the columns of a panel, below its diagonal block and above a row. @param end that row; the last by default */
export const belowPanel = (g: Graph, { lower, size }: Factor, { from, to, width }: Panel, end = size): Tensor =>
  blockOperand(g, lower, { row: to, column: from, rows: end - to, columns: width });

/** L in the rows of a panel, from a column on, up to its diagonal block. */
export const besidePanel = (g: Graph, { lower }: Factor, { from, width }: Panel, start = 0): Tensor =>
  blockOperand(g, lower, { row: from, column: start, rows: width, columns: from - start });

/** A panel in its group. */
interface Place {
  readonly group: PanelGroup;
  readonly panel: Panel;
}

/** Computes the factorization of the matrix + ridge · I. @throws CoppiceError when that is not positive definite */
export async function factorPanels(factor: Factor, { ridge = 0, onProgress }: CholeskyOptions): Promise<void> {
  const { backend, size, groups } = factor;
  const work = new TensorStore(backend, 1);
  const places = groups.flatMap((group) => group.panels.map((panel): Place => ({ group, panel })));
  try {
    const reduced = work.add("reduced", [size, Math.min(size, GROUP)], "f32");
    work.allocate();
    let previous: Place | undefined;
    for (const [i, place] of places.entries()) {
      await reducePanel(factor, reduced, place, previous);
      factorDiagonal(factor, reduced, place, ridge);
      previous = place;
      onProgress?.(i + 1, places.length);
    }
  } finally {
    work.free();
  }
}

/**
 * Computes the previous panel of L below its diagonal block from its reduced columns, and then reduces this panel, one computation for both:
 * a group's columns by all columns of L before it, A[from.., group] − L[from.., ..from] L[group, ..from]ᵀ, when its first panel comes, and
 * each further panel by those of the group before it.
 * @param reduced the reduced columns of a group, from its first row on: [size, GROUP]
 */
function reducePanel(
  factor: Factor,
  reduced: Tensor,
  { group, panel }: Place,
  previous: Place | undefined,
): Promise<void> {
  const { lower, size } = factor;
  const rows = size - panel.from;
  return runOnce(factor.backend, async (g) => {
    if (previous !== undefined) {
      const { group: own, panel: done } = previous;
      const range = { row: done.to - own.from, column: done.from - own.from, rows, columns: done.width };
      const solved = timesTransposed(g, blockOperand(g, reduced, range), diagonalInverse(g, factor, done));
      store(g, solved, lower, { row: panel.from, column: done.from, rows, columns: done.width });
    }
    if (panel.from === group.from) {
      const columns = blockCopy(g, lower, { row: group.from, column: group.from, rows, columns: group.width });
      const before = { row: group.from, column: 0, rows, columns: group.from };
      const product = () => timesTransposed(g, blockOperand(g, lower, before), besidePanel(g, factor, group));
      const value = group.from === 0 ? columns : ops.sub(g, columns, product());
      store(g, value, reduced, { row: 0, column: 0, rows, columns: group.width });
    } else {
      const range = { row: panel.from - group.from, column: panel.from - group.from, rows, columns: panel.width };
      const before = { row: panel.from, column: group.from, rows, columns: panel.from - group.from };
      const product = timesTransposed(g, blockOperand(g, lower, before), besidePanel(g, factor, panel, group.from));
      store(g, ops.sub(g, blockCopy(g, reduced, range), product), reduced, range);
    }
    await g.run();
  });
}

/** Factors and inverts a panel's diagonal block on the host. */
function factorDiagonal(factor: Factor, reduced: Tensor, { group, panel }: Place, ridge: number): void {
  const { backend, inverses } = factor;
  const { from, width } = panel;
  const [, stride = 0] = reduced.shape;
  const first = from - group.from;
  const rows = new Float32Array(width * stride);
  readElements(backend, reduced, first * stride, rows);
  const diagonal = new Float64Array(width * width);
  for (let i = 0; i < width; i++) {
    diagonal.set(rows.subarray(i * stride + first, i * stride + first + width), i * width);
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
