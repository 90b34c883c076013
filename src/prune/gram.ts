import { checkSums } from "../evaluate/finite.js";
import type { Team } from "../evaluate/team.js";
import type { Backend } from "../ggml/device.js";
import { diagonalOf, type Matrix, symmetric } from "../linear-algebra/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** Σ x xᵀ over rows of activations, on the device. Free it after use. */
export class Gram {
  private readonly store: TensorStore;
  /** [size, size]; the lower triangle counts. */
  readonly sums: Tensor;

  /** @param what is summed, for messages @param size values of a row */
  constructor(
    private readonly backend: Backend,
    private readonly what: string,
    private readonly size: number,
  ) {
    this.store = new TensorStore(backend, 1);
    this.sums = this.store.add(what, [size, size], "f32");
    this.store.allocate();
  }

  /** Adds x xᵀ of all rows when the graph runs. x: [rows, size] */
  add(g: Graph, x: Tensor): void {
    g.effect(ops.addGram(g, this.sums, x));
  }

  /**
   * The diagonal. No other sum is finite where that is not, and none differs from zero where it is all zero (Cauchy and Schwarz).
   * @throws CoppiceError when it is not finite
   */
  diagonal(): Float32Array {
    const diagonal = diagonalOf(this.backend, this.sums);
    checkSums(this.what, diagonal);
    return diagonal;
  }

  /** Adds up the sums of a team, at one of its processes or at all. */
  async sumOver(team: Team | undefined, root?: number): Promise<void> {
    await team?.sum(this.store, root);
  }

  /** Sets all sums to zero. */
  clear(): void {
    this.store.clear();
  }

  /** The sums so far, row by row; the lower triangle counts. */
  read(): Float32Array {
    return this.store.read(this.sums);
  }

  /** Goes on from sums that were read before. */
  write(sums: Float32Array): void {
    this.store.write(this.sums, sums);
  }

  /** @throws CoppiceError when it is not finite */
  matrix(): Matrix {
    this.diagonal();
    return symmetric(this.size, this.read());
  }

  free(): void {
    this.store.free();
  }
}
