import { type Graph, ops, type Tensor } from "../tensor/index.js";
import { blockOperand, runOnce, store, times, transposed } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel } from "./factor.js";

/** Computes (L Lᵀ)⁻¹ in place of L, from the last panel to the first. */
export const invert = (factor: Factor): Promise<void> =>
  runOnce(factor.backend, async (g) => {
    for (const panel of factor.panels.toReversed()) invertPanel(g, factor, panel);
    await g.run();
  });

/**
 * The columns of Z = (L Lᵀ)⁻¹ that belong to a panel J, from those right of it, K, which are known: Z L = L⁻ᵀ, so
 * Z[K, J] = −Z[K, K] L[K, J] L_JJ⁻¹ and Z[J, J] = (L_JJ⁻ᵀ − Z[J, K] L[K, J]) L_JJ⁻¹. Z[K, J] takes the place of L[K, J], which no
 * panel further to the left needs, and is therefore stored last.
 */
function invertPanel(g: Graph, factor: Factor, panel: Panel): void {
  const { lower: z } = factor;
  const { from, to, width } = panel;
  const rows = factor.size - to;
  const inverse = diagonalInverse(g, factor, panel);
  const storeDiagonal = (rest: Tensor): void => {
    const product = times(g, rest, inverse);
    const symmetric = ops.scale(g, ops.add(g, product, transposed(g, product)), { factor: 0.5 });
    store(g, symmetric, z, { row: from, column: from, rows: width, columns: width });
  };
  if (rows === 0) {
    storeDiagonal(transposed(g, inverse));
    return;
  }
  const below = belowPanel(g, factor, panel);
  const known = blockOperand(g, z, { row: to, column: to, rows, columns: rows });
  const column = ops.scale(g, times(g, times(g, known, below), inverse), { factor: -1 });
  const row = transposed(g, column);
  storeDiagonal(ops.sub(g, transposed(g, inverse), times(g, row, below)));
  store(g, column, z, { row: to, column: from, rows, columns: width });
  store(g, row, z, { row: from, column: to, rows: width, columns: rows });
}
