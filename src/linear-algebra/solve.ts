import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { blockOperand, store, times, timesTransposed, transposed } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel } from "./factor.js";
import { blockOf, type Matrix, setBlock, zeroMatrix } from "./matrix.js";

/** The most right-hand sides to solve at once. */
const CHUNK = 1024;

/** x with L Lᵀ x = b, in chunks of columns. */
export async function solveColumns(factor: Factor, b: Matrix): Promise<Matrix> {
  const width = Math.ceil(b.columns / Math.ceil(b.columns / CHUNK));
  const solver = new ChunkSolver(factor, width);
  const x = zeroMatrix(b.rows, b.columns);
  try {
    for (let column = 0; column < b.columns; column += width) {
      const right = zeroMatrix(b.rows, width);
      const columns = Math.min(width, b.columns - column);
      setBlock(right, 0, 0, blockOf(b, { row: 0, column, rows: b.rows, columns }));
      setBlock(x, 0, column, await solver.solve(right));
    }
    return x;
  } finally {
    solver.free();
  }
}

/** Solves for a fixed number of right-hand sides. Solutions are kept on the device transposed: [width, size]. */
class ChunkSolver {
  private readonly tensors: TensorStore;
  private readonly substitution: Graph;
  private readonly right: Tensor;
  private readonly result: Tensor;

  constructor(factor: Factor, width: number) {
    const { backend, size, panels } = factor;
    this.tensors = new TensorStore(backend, 1);
    const solution = this.tensors.add("solution", [width, size], "f32");
    this.tensors.allocate();
    const g = new Graph(backend);
    this.substitution = g;
    this.right = g.input("right", "f32", [size, width]);
    for (const panel of panels) forward(g, factor, panel, { right: this.right, solution });
    for (const panel of panels.toReversed()) backward(g, factor, panel, solution);
    this.result = g.output(transposed(g, solution));
  }

  /** x with L Lᵀ x = right. */
  async solve(right: Matrix): Promise<Matrix> {
    this.substitution.write(this.right, right.data);
    await this.substitution.run();
    return { rows: right.rows, columns: right.columns, data: this.substitution.read(this.result) };
  }

  free(): void {
    this.substitution.free();
    this.tensors.free();
  }
}

/** Y_p = L_pp⁻¹ (B_p − L[p, ..p] Y[..p]), everything transposed. */
function forward(
  g: Graph,
  factor: Factor,
  panel: Panel,
  { right, solution }: { readonly right: Tensor; readonly solution: Tensor },
): void {
  const { from, to, width } = panel;
  const columns = solution.shape[0] ?? 0;
  let value = transposed(g, ops.rowsOf(g, right, { from, to }));
  if (from > 0) {
    const before = blockOperand(g, solution, { row: 0, column: 0, rows: columns, columns: from });
    const beside = blockOperand(g, factor.lower, { row: from, column: 0, rows: width, columns: from });
    value = ops.sub(g, value, timesTransposed(g, before, beside));
  }
  const solved = timesTransposed(g, value, diagonalInverse(g, factor, panel));
  store(g, solved, solution, { row: 0, column: from, rows: columns, columns: width });
}

/** X_p = L_pp⁻ᵀ (Y_p − L[p.., p]ᵀ X[p..]), everything transposed. */
function backward(g: Graph, factor: Factor, panel: Panel, solution: Tensor): void {
  const { from, to, width } = panel;
  const columns = solution.shape[0] ?? 0;
  const range = { row: 0, column: from, rows: columns, columns: width };
  let value = blockOperand(g, solution, range);
  if (to < factor.size) {
    const after = blockOperand(g, solution, { row: 0, column: to, rows: columns, columns: factor.size - to });
    value = ops.sub(g, value, times(g, after, belowPanel(g, factor, panel)));
  }
  store(g, times(g, value, diagonalInverse(g, factor, panel)), solution, range);
}
