import { type Graph, ops, type Tensor } from "../tensor/index.js";
import { blockCopy, blockOperand, runOnce, store, times, transposed } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel, type PanelGroup } from "./factor.js";

/** Computes (L Lᵀ)⁻¹ in place of L, from the last panel to the first. */
export const invert = (factor: Factor): Promise<void> =>
  runOnce(factor.backend, async (g) => {
    for (const group of factor.groups.toReversed()) invertGroup(g, factor, group);
    await g.run();
  });

/**
 * The columns of Z = (L Lᵀ)⁻¹ that belong to a group of panels. Those behind it, R, take part in all of its panels, by Z[R, R] L[R, group],
 * which is computed at once.
 */
function invertGroup(g: Graph, factor: Factor, group: PanelGroup): void {
  const { lower: z, size } = factor;
  const behind = size - group.to;
  const outer =
    behind === 0
      ? undefined
      : times(
          g,
          blockOperand(g, z, { row: group.to, column: group.to, rows: behind, columns: behind }),
          belowPanel(g, factor, group),
        );
  for (const panel of group.panels.toReversed()) invertPanel(g, factor, { group, panel, outer });
}

interface InvertedPanel {
  readonly group: PanelGroup;
  readonly panel: Panel;
  /** Z[R, R] L[R, group]: [rows behind the group, its columns]; undefined where there are none. */
  readonly outer: Tensor | undefined;
}

/**
 * The columns of Z that belong to a panel J, from those right of it, K, which are known: Z L = L⁻ᵀ, so
 * Z[K, J] = −Z[K, K] L[K, J] L_JJ⁻¹ and Z[J, J] = (L_JJ⁻ᵀ − Z[J, K] L[K, J]) L_JJ⁻¹. Z[K, J] takes the place of L[K, J], which no
 * panel further to the left needs, and is therefore stored last.
 */
function invertPanel(g: Graph, factor: Factor, { group, panel, outer }: InvertedPanel): void {
  const { lower: z, size } = factor;
  const { from, to, width } = panel;
  const inverse = diagonalInverse(g, factor, panel);
  const storeDiagonal = (rest: Tensor): void => {
    const product = times(g, rest, inverse);
    const symmetric = ops.scale(g, ops.add(g, product, transposed(g, product)), { factor: 0.5 });
    store(g, symmetric, z, { row: from, column: from, rows: width, columns: width });
  };
  if (to === size) {
    storeDiagonal(transposed(g, inverse));
    return;
  }
  const [within, behind] = [group.to - to, size - group.to];
  // Z[K, J] in rows of the group, and of what is behind it
  const solved = (sum: Tensor): Tensor => ops.scale(g, times(g, sum, inverse), { factor: -1 });
  const own = within === 0 ? undefined : belowPanel(g, factor, panel, group.to);
  const far =
    behind === 0 ? undefined : blockOperand(g, z, { row: group.to, column: from, rows: behind, columns: width });
  const columns = outer && blockCopy(g, outer, { row: 0, column: from - group.from, rows: behind, columns: width });
  const known = (rows: readonly [number, number], right: readonly [number, number]): Tensor =>
    blockOperand(g, z, { row: rows[0], column: right[0], rows: rows[1] - rows[0], columns: right[1] - right[0] });
  const parts: { readonly value: Tensor; readonly row: number; readonly rows: number; readonly lower: Tensor }[] = [];
  if (own !== undefined) {
    const inside = times(g, known([to, group.to], [to, group.to]), own);
    const sum = far === undefined ? inside : ops.add(g, inside, times(g, known([to, group.to], [group.to, size]), far));
    parts.push({ value: solved(sum), row: to, rows: within, lower: own });
  }
  if (far !== undefined && columns !== undefined) {
    const sum =
      own === undefined ? columns : ops.add(g, columns, times(g, known([group.to, size], [to, group.to]), own));
    parts.push({ value: solved(sum), row: group.to, rows: behind, lower: far });
  }
  const rowsOfPanel = parts.map(({ value }) => transposed(g, value));
  let diagonal = transposed(g, inverse);
  for (const [i, part] of parts.entries())
    diagonal = ops.sub(g, diagonal, times(g, rowsOfPanel[i] as Tensor, part.lower));
  storeDiagonal(diagonal);
  for (const [i, { value, row, rows }] of parts.entries()) {
    store(g, value, z, { row, column: from, rows, columns: width });
    store(g, rowsOfPanel[i] as Tensor, z, { row: from, column: row, rows: width, columns: rows });
  }
}
