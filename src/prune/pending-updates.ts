import type { Backend } from "../ggml/device.js";
import { block, type Matrix, readElements, writeElements } from "../linear-algebra/index.js";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** So many rows of updates are kept before they are made. */
const CAPACITY = 512;

/** A matrix that is updated: the beginning of a larger one. */
export interface UpdatedPart {
  readonly rows: number;
  readonly columns: number;
  /** Rows of F and R in each update. */
  readonly atOnce: number;
}

/**
 * Updates M += Fᵀ R of a matrix on the device, which are kept until they fill a block and then made at once: each goes through the
 * whole matrix, and a few rows at a time would wait for memory.
 */
export class PendingUpdates {
  private readonly store: TensorStore;
  /** F, [capacity, rows of M]. */
  private readonly factors: Tensor;
  /** The same on the host. */
  private readonly hostFactors: Float32Array;
  /** R, [capacity, columns of M]. */
  private readonly rows: Tensor;
  private readonly capacity: number;
  private count = 0;
  private readonly update: Graph;
  /** Computes rows of M, from what they were and the shares that they have in R. */
  private readonly current: Graph;
  private readonly known: Tensor;
  private readonly shares: Tensor;
  private readonly sums: Tensor;

  /** @param matrix begins with M, in its first rows and columns */
  constructor(
    private readonly backend: Backend,
    private readonly matrix: Tensor,
    private readonly part: UpdatedPart,
  ) {
    const { rows: height, columns: width, atOnce } = part;
    this.capacity = atOnce * Math.max(1, Math.floor(CAPACITY / atOnce));
    this.hostFactors = new Float32Array(this.capacity * height);
    this.store = new TensorStore(backend, 2);
    this.factors = this.store.add("factors", [this.capacity, height], "f32");
    this.rows = this.store.add("rows", [this.capacity, width], "f32");
    this.store.allocate();
    this.update = new Graph(backend);
    this.update.effect(ops.addProducts(this.update, this.ownPart(this.update), this.factors, this.rows));
    this.current = new Graph(backend);
    this.known = this.current.input("known", "f32", [atOnce, width]);
    this.shares = this.current.input("shares", "f32", [atOnce, this.capacity]);
    const changes = ops.linear(this.current, this.shares, this.rows, { transposed: true });
    this.sums = this.current.output(ops.add(this.current, this.known, changes));
  }

  private ownPart(g: Graph): Tensor {
    const { rows, columns } = this.part;
    return block(g, this.matrix, { row: 0, column: 0, rows, columns });
  }

  /** Whether no update is kept. */
  get isEmpty(): boolean {
    return this.count === 0;
  }

  /** Rows of M with all updates, as many as an update has. */
  async currentRows(indices: readonly number[]): Promise<Matrix> {
    const { capacity, current } = this;
    const { rows: height, columns: width } = this.part;
    const [, stride = 0] = this.matrix.shape;
    const known = new Float32Array(indices.length * width);
    const shares = new Float32Array(indices.length * capacity);
    for (const [i, index] of indices.entries()) {
      readElements(this.backend, this.matrix, index * stride, known.subarray(i * width, (i + 1) * width));
      for (let row = 0; row < this.count; row++)
        shares[i * capacity + row] = elementAt(this.hostFactors, row * height + index);
    }
    current.write(this.known, known);
    current.write(this.shares, shares);
    await current.run();
    return { rows: indices.length, columns: width, data: current.read(this.sums) };
  }

  /** x Mᵀ with all updates, in a graph. x: [n, columns of M] */
  multiplied(g: Graph, x: Tensor): Tensor {
    const changes = ops.linear(g, ops.matmul(g, x, this.rows), this.factors, { transposed: true });
    return ops.add(g, ops.matmul(g, x, this.ownPart(g)), changes);
  }

  /** @param factors F of an update @param rows its R */
  async add(factors: Float32Array, rows: Float32Array): Promise<void> {
    const { rows: height, columns: width, atOnce } = this.part;
    this.hostFactors.set(factors, this.count * height);
    writeElements(this.backend, this.factors, this.count * height, factors);
    writeElements(this.backend, this.rows, this.count * width, rows);
    this.count += atOnce;
    if (this.count < this.capacity) return;
    await this.update.run();
    this.store.clear();
    this.count = 0;
  }

  free(): void {
    this.update.free();
    this.current.free();
    this.store.free();
  }
}
