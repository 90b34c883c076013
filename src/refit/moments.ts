import { checkSums } from "../evaluate/finite.js";
import type { Team } from "../evaluate/team.js";
import type { Backend } from "../ggml/device.js";
import type { Matrix } from "../linear-algebra/index.js";
import { Gram } from "../prune/gram.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** Sums of products of activations over calibration data, on the device. */
export class Moments {
  /** x'x, [inputs, inputs]. */
  readonly inputs: Gram;
  private readonly store: TensorStore;
  private readonly cross: Tensor;

  /** @param what is regressed, for messages @param sizes values of a row of x and of y */
  constructor(
    backend: Backend,
    private readonly what: string,
    [inputs, targets]: readonly [inputs: number, targets: number],
  ) {
    this.inputs = new Gram(backend, `the moments of ${what}`, inputs);
    this.store = new TensorStore(backend, 1);
    this.cross = this.store.add("y'x", [targets, inputs], "f32");
    try {
      this.store.allocate();
    } catch (error) {
      this.free();
      throw error;
    }
  }

  /** Adds x'x and y'x when the graph runs. x: [rows, inputs], y: [rows, targets] */
  add(g: Graph, x: Tensor, y: Tensor): void {
    this.inputs.add(g, x);
    g.effect(ops.addProducts(g, this.cross, y, x));
  }

  /** Adds up the sums of a team, at one of its processes or at all. */
  async sumOver(team: Team | undefined, root?: number): Promise<void> {
    await this.inputs.sumOver(team, root);
    await team?.sum(this.store, root);
  }

  /** y'x, [targets, inputs]. @throws CoppiceError when it is not finite */
  get targets(): Matrix {
    const [rows, columns] = this.cross.shape as [number, number];
    const data = this.store.read(this.cross);
    checkSums(`the moments of ${this.what}`, data);
    return { rows, columns, data };
  }

  free(): void {
    this.inputs.free();
    this.store.free();
  }
}
