import { overBatches, type Passage, type ResidualStream } from "../evaluate/residual-stream.js";
import type { Matrix } from "../linear-algebra/index.js";
import type { ResidualStep } from "../models/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** Keeps rows of zeros from becoming infinite, and from being divided by. */
const EPSILON = 1e-12;

/**
 * The rms of n R over the data, n = x / rms(x), where x is the stream that a step's norm reads, or the final norm's. A norm after R
 * gives rows of rms 1: what reads it is multiplied by this.
 */
export async function projectedScale(
  { backend, computeType, ...passage }: Passage,
  stream: ResidualStream,
  step: ResidualStep | undefined,
  write: Matrix,
): Promise<number> {
  const store = new TensorStore(backend, 1);
  const total = store.add("sum of squares", [1], "f32");
  store.allocate();
  try {
    await overBatches({ ...passage, backend, computeType }, (g) => {
      const wire = step === undefined ? stream.input(g, "stream") : stream.inputOf(g, step, "stream");
      addSquares(g, total, wire[0], write);
      return { reads: [wire] };
    });
    await passage.team?.sum(store);
    const batches = passage.team?.batches ?? passage.batches.length;
    const values = batches * passage.layout.batch * passage.layout.seq * write.columns;
    return Math.sqrt((store.read(total)[0] as number) / values);
  } finally {
    store.free();
  }
}

function addSquares(g: Graph, total: Tensor, x: Tensor, write: Matrix): void {
  const normed = ops.rmsNorm(g, x, { epsilon: EPSILON });
  const matrix = g.constant("basis", "f32", [write.rows, write.columns], write.data);
  const squares = ops.sum(g, ops.square(g, ops.linear(g, normed, matrix, { transposed: true })));
  g.effect(ops.assign(g, ops.add(g, squares, total), total));
}

/** The rms of each row: [rows, 1]. */
export function rowSizes(g: Graph, x: Tensor): Tensor {
  const columns = x.shape[1] as number;
  return ops.sqrt(g, ops.scale(g, ops.sumLast(g, ops.square(g, x)), { factor: 1 / columns, bias: EPSILON }));
}
