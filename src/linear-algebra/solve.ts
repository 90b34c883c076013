import { setImmediate as rest } from "node:timers/promises";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { blockOperand, store, times, timesTransposed, transposed } from "./device.js";
import { belowPanel, diagonalInverse, type Factor, type Panel } from "./factor.js";
import { blockOf, type Matrix, setBlock, zeroMatrix } from "./matrix.js";

/** The most right-hand sides to solve at once. */
const CHUNK = 2048;
/** Rows of the matrix that are on the device at once for residuals. */
const RESIDUAL_ROWS = 512;

export interface SolveOptions {
  /**
   * Whether a step of iterative refinement follows, as by default. With f32 residuals it divides the backward error by 1 to 4 and
   * triples the time.
   */
  readonly refine?: boolean | undefined;
}

/** A symmetric matrix to solve with: the lower triangle of `a`, and what is added to its diagonal. */
interface System {
  readonly a: Matrix;
  readonly ridge: number;
}

/** x with (a + ridge · I) x = b, in chunks of columns. */
export async function solveColumns(
  factor: Factor,
  system: System,
  b: Matrix,
  { refine = true }: SolveOptions,
): Promise<Matrix> {
  const width = Math.ceil(b.columns / Math.ceil(b.columns / CHUNK));
  const solver = new ChunkSolver(factor, width);
  const x = zeroMatrix(b.rows, b.columns);
  try {
    for (let column = 0; column < b.columns; column += width) {
      const right = zeroMatrix(b.rows, width);
      const columns = Math.min(width, b.columns - column);
      setBlock(right, 0, 0, blockOf(b, { row: 0, column, rows: b.rows, columns }));
      const solution = await solver.solve(right);
      if (refine) {
        await solver.residual(system, right);
        addTo(solution, await solver.solve(right));
      }
      setBlock(x, 0, column, solution);
    }
    return x;
  } finally {
    solver.free();
  }
}

function addTo(sum: Matrix, { data }: Matrix): void {
  for (let i = 0; i < data.length; i++) sum.data[i] = (sum.data[i] ?? 0) + (data[i] ?? 0);
}

/** Solves for a fixed number of right-hand sides. Solutions are kept on the device transposed: [width, size]. */
class ChunkSolver {
  private readonly tensors: TensorStore;
  private readonly solution: Tensor;
  private readonly substitution: Graph;
  private readonly right: Tensor;
  private readonly result: Tensor;
  private readonly product: Graph;
  private readonly rows: Tensor;
  private readonly rowsTimesSolution: Tensor;

  constructor(
    private readonly factor: Factor,
    private readonly width: number,
  ) {
    const { backend, size, panels } = factor;
    this.tensors = new TensorStore(backend, 1);
    this.solution = this.tensors.add("solution", [width, size], "f32");
    this.tensors.allocate();
    const g = new Graph(backend);
    this.substitution = g;
    this.right = g.input("right", "f32", [size, width]);
    for (const panel of panels) forward(g, factor, panel, { right: this.right, solution: this.solution });
    for (const panel of panels.toReversed()) backward(g, factor, panel, this.solution);
    this.result = g.output(transposed(g, this.solution));
    this.product = new Graph(backend);
    this.rows = this.product.input("rows", "f32", [Math.min(RESIDUAL_ROWS, size), size]);
    this.rowsTimesSolution = this.product.output(timesTransposed(this.product, this.rows, this.solution));
  }

  /** x with L Lᵀ x = right. */
  async solve(right: Matrix): Promise<Matrix> {
    this.substitution.write(this.right, right.data);
    await this.substitution.run();
    return { rows: right.rows, columns: right.columns, data: this.substitution.read(this.result) };
  }

  /** Subtracts (a + ridge · I) x from the right-hand side, x the solution found last. */
  async residual({ a, ridge }: System, right: Matrix): Promise<void> {
    const count = Math.min(RESIDUAL_ROWS, this.factor.size);
    for (let row = 0; row < right.rows; row += count) {
      this.product.write(this.rows, symmetricRows(a, ridge, row, count));
      await this.product.run();
      const product = this.product.read(this.rowsTimesSolution);
      const from = row * this.width;
      const end = Math.min(product.length, right.data.length - from);
      for (let i = 0; i < end; i++) right.data[from + i] = (right.data[from + i] ?? 0) - (product[i] ?? 0);
      await rest();
    }
  }

  free(): void {
    this.substitution.free();
    this.product.free();
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

/** Rows [row, row + count) of the whole symmetric matrix, of which the lower triangle is read; zeros past its end. */
function symmetricRows({ rows: size, data }: Matrix, ridge: number, row: number, count: number): Float32Array {
  const result = new Float32Array(count * size);
  const end = Math.min(row + count, size);
  for (let i = row; i < end; i++) {
    result.set(data.subarray(i * size, i * size + i + 1), (i - row) * size);
    const diagonal = (i - row) * size + i;
    result[diagonal] = elementAt(result, diagonal) + ridge;
  }
  for (let j = row + 1; j < size; j++)
    for (let i = row; i < Math.min(j, end); i++) result[(i - row) * size + j] = data[j * size + i] ?? 0;
  return result;
}
