import type { TensorSource } from "../checkpoint/index.js";
import { floatSource, rowCount, tensorInfo } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { loadFunctions } from "../ggml/library.js";
import type { Matrix } from "../linear-algebra/index.js";
import { Graph, ops, TensorStore } from "../tensor/index.js";

/** A matrix whose rows are computed as they are needed: those of a vocabulary do not fit in memory everywhere. */
export interface MatrixRows {
  readonly name: string;
  /** Blocks of rows, f32, from the first to the last. */
  readonly blocks: () => AsyncIterable<Float32Array>;
}

/** The most rows in a block. */
export const ROWS = 4096;

/** Rows as they are stored. */
export const storedRows = (source: TensorSource, name: string): MatrixRows => ({
  name,
  async *blocks() {
    yield* readBlocks(source, name);
  },
});

/** Rows multiplied by a matrix, on the device in f32. @param right [columns, narrower] */
export const rowsTimes = (backend: Backend, source: TensorSource, name: string, right: Matrix): MatrixRows => ({
  name,
  async *blocks() {
    const store = new TensorStore(backend, 1);
    const matrix = store.add("right", [right.rows, right.columns], "f32");
    const g = new Graph(backend);
    try {
      store.allocate().write(matrix, right.data);
      const rows = g.input("rows", "f32", [ROWS, right.rows]);
      const product = g.output(ops.linear(g, rows, matrix, { transposed: true }));
      for (const block of readBlocks(source, name)) {
        const padded = new Float32Array(ROWS * right.rows);
        padded.set(block);
        g.write(rows, padded);
        await g.run();
        yield g.read(product).subarray(0, (block.length / right.rows) * right.columns);
      }
    } finally {
      g.free();
      store.free();
    }
  },
});

/** A matrix's rows as f32, in blocks. */
export function* readBlocks(stored: TensorSource, name: string): Iterable<Float32Array> {
  const source = floatSource(stored);
  const info = tensorInfo(source, name);
  for (let from = 0; from < rowCount(info); from += ROWS) {
    const to = Math.min(rowCount(info), from + ROWS);
    yield toFloat32(loadFunctions(), source.readRows(name, from, to), info.dtype).slice();
    source.releaseRows(name, from, to);
  }
}
