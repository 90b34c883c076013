import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { blockOperand, store, times, timesTransposed, writeElements } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel } from "./factor.js";
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
    const { backend, size, panels } = factor;
    this.tensors = new TensorStore(backend, 1);
    this.rows = this.tensors.add("rows", [count, size], "f32");
    this.tensors.allocate();
    this.substitution = new Graph(backend);
    for (const panel of panels) forward(this.substitution, factor, panel, this.rows);
    for (const panel of panels.toReversed()) backward(this.substitution, factor, panel, this.rows);
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

/** Y_p = (B_p − Y[..p] L[p, ..p]ᵀ) L_pp⁻ᵀ, in place of B_p. */
function forward(g: Graph, factor: Factor, panel: Panel, rows: Tensor): void {
  const { from, width } = panel;
  const [count = 0] = rows.shape;
  const range = { row: 0, column: from, rows: count, columns: width };
  let value = blockOperand(g, rows, range);
  if (from > 0) {
    const before = blockOperand(g, rows, { row: 0, column: 0, rows: count, columns: from });
    const beside = blockOperand(g, factor.lower, { row: from, column: 0, rows: width, columns: from });
    value = ops.sub(g, value, timesTransposed(g, before, beside));
  }
  store(g, timesTransposed(g, value, diagonalInverse(g, factor, panel)), rows, range);
}

/** X_p = (Y_p − X[p..] L[p.., p]) L_pp⁻¹, in place of Y_p. */
function backward(g: Graph, factor: Factor, panel: Panel, rows: Tensor): void {
  const { from, to, width } = panel;
  const [count = 0] = rows.shape;
  const range = { row: 0, column: from, rows: count, columns: width };
  let value = blockOperand(g, rows, range);
  if (to < factor.size) {
    const after = blockOperand(g, rows, { row: 0, column: to, rows: count, columns: factor.size - to });
    value = ops.sub(g, value, times(g, after, belowPanel(g, factor, panel)));
  }
  store(g, times(g, value, diagonalInverse(g, factor, panel)), rows, range);
}
