import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { blockOperand, store, times, timesTransposed, writeElements } from "./device.js";
import { belowPanel, besidePanel, diagonalInverse, type Factor, type Panel, type PanelGroup } from "./factor.js";
import { type Matrix, zeroMatrix } from "./matrix.js";

/** The most rows to solve for at once. */
const CHUNK = 1024;

/** x with x L Lᵀ = b, [rows, size], in chunks of rows. */
export async function solveRows(factor: Factor, b: Matrix): Promise<Matrix> {
  const count = Math.ceil(b.rows / Math.ceil(b.rows / CHUNK));
  const solver = new ChunkSolver(factor, count);
  const x = zeroMatrix(b.rows, b.columns);
  try {
    for (let row = 0; row < b.rows; row += count) {
      const right = b.data.subarray(row * b.columns, (row + count) * b.columns);
      const solution = await solver.solve(right);
      x.data.set(solution.subarray(0, right.length), row * b.columns);
    }
    return x;
  } finally {
    solver.free();
  }
}

/** Solves for a fixed number of rows, in place. */
class ChunkSolver {
  private readonly tensors: TensorStore;
  private readonly rows: Tensor;
  private readonly substitution: Graph;

  constructor(factor: Factor, count: number) {
    const { backend, size, groups } = factor;
    this.tensors = new TensorStore(backend, 1);
    this.rows = this.tensors.add("rows", [count, size], "f32");
    this.tensors.allocate();
    this.substitution = new Graph(backend);
    for (const group of groups) forward(this.substitution, factor, group, this.rows);
    for (const group of groups.toReversed()) backward(this.substitution, factor, group, this.rows);
  }

  /** @param right so many rows, or fewer in the last chunk */
  async solve(right: Float32Array): Promise<Float32Array> {
    writeElements(this.substitution.backend, this.rows, 0, right);
    await this.substitution.run();
    return this.tensors.read(this.rows);
  }

  free(): void {
    this.substitution.free();
    this.tensors.free();
  }
}

/** Columns of the right-hand sides. */
const columnsOf = (g: Graph, rows: Tensor, from: number, to: number): Tensor =>
  blockOperand(g, rows, rangeOf(rows, from, to));

const rangeOf = ({ shape: [count = 0] }: Tensor, from: number, to: number) => ({
  row: 0,
  column: from,
  rows: count,
  columns: to - from,
});

/** Y_p = (B_p − Y[..p] L[p, ..p]ᵀ) L_pp⁻ᵀ, in place of B_p, for the panels of a group: first what comes from before it, for all of them. */
function forward(g: Graph, factor: Factor, group: PanelGroup, rows: Tensor): void {
  const subtract = (panel: Panel, start: number): void => {
    if (panel.from === start) return;
    const product = timesTransposed(g, columnsOf(g, rows, start, panel.from), besidePanel(g, factor, panel, start));
    store(g, ops.sub(g, columnsOf(g, rows, panel.from, panel.to), product), rows, rangeOf(rows, panel.from, panel.to));
  };
  subtract(group, 0);
  for (const panel of group.panels) {
    subtract(panel, group.from);
    const own = columnsOf(g, rows, panel.from, panel.to);
    store(g, timesTransposed(g, own, diagonalInverse(g, factor, panel)), rows, rangeOf(rows, panel.from, panel.to));
  }
}

/** X_p = (Y_p − X[p..] L[p.., p]) L_pp⁻¹, in place of Y_p, for the panels of a group: first what comes from behind it, for all of them. */
function backward(g: Graph, factor: Factor, group: PanelGroup, rows: Tensor): void {
  const subtract = (panel: Panel, end: number): void => {
    if (panel.to === end) return;
    const product = times(g, columnsOf(g, rows, panel.to, end), belowPanel(g, factor, panel, end));
    store(g, ops.sub(g, columnsOf(g, rows, panel.from, panel.to), product), rows, rangeOf(rows, panel.from, panel.to));
  };
  subtract(group, factor.size);
  for (const panel of group.panels.toReversed()) {
    subtract(panel, group.to);
    const own = columnsOf(g, rows, panel.from, panel.to);
    store(g, times(g, own, diagonalInverse(g, factor, panel)), rows, rangeOf(rows, panel.from, panel.to));
  }
}
