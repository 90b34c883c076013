import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { blockOperand, readAll, runOnce, store, times, transposed } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel } from "./factor.js";
import { type Matrix, zeroMatrix } from "./matrix.js";

/** (L Lᵀ)⁻¹, from the last panel to the first. */
export async function invert(factor: Factor): Promise<Matrix> {
  const { backend, size, panels } = factor;
  const result = new TensorStore(backend, 1);
  try {
    const inverse = result.add("inverse", [size, size], "f32");
    result.allocate();
    await runOnce(backend, async (g) => {
      for (const panel of panels.toReversed()) invertPanel(g, factor, inverse, panel);
      await g.run();
    });
    const matrix = zeroMatrix(size, size);
    await readAll(backend, inverse, matrix.data);
    return matrix;
  } finally {
    result.free();
  }
}

/**
 * The columns of Z = (L Lᵀ)⁻¹ that belong to a panel J, from those right of it, K, which are known: Z L = L⁻ᵀ, so
 * Z[K, J] = −Z[K, K] L[K, J] L_JJ⁻¹ and Z[J, J] = (L_JJ⁻ᵀ − Z[J, K] L[K, J]) L_JJ⁻¹.
 */
function invertPanel(g: Graph, factor: Factor, z: Tensor, panel: Panel): void {
  const { from, to, width } = panel;
  const rows = factor.size - to;
  const inverse = diagonalInverse(g, factor, panel);
  let diagonal = transposed(g, inverse);
  if (rows > 0) {
    const below = belowPanel(g, factor, panel);
    const known = blockOperand(g, z, { row: to, column: to, rows, columns: rows });
    const column = ops.scale(g, times(g, times(g, known, below), inverse), { factor: -1 });
    const row = transposed(g, column);
    store(g, column, z, { row: to, column: from, rows, columns: width });
    store(g, row, z, { row: from, column: to, rows: width, columns: rows });
    diagonal = ops.sub(g, diagonal, times(g, row, below));
  }
  const product = times(g, diagonal, inverse);
  const symmetric = ops.scale(g, ops.add(g, product, transposed(g, product)), { factor: 0.5 });
  store(g, symmetric, z, { row: from, column: from, rows: width, columns: width });
}
