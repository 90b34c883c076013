import { checkSums } from "../evaluate/finite.js";
import type { Backend } from "../ggml/device.js";
import { type Matrix, symmetric } from "../linear-algebra/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** Sums of products of activations over calibration data, on the device. */
export class Moments {
  private readonly store: TensorStore;
  private readonly square: Tensor;
  private readonly cross: Tensor;

  /** @param what is regressed, for messages @param sizes values of a row of x and of y */
  constructor(
    backend: Backend,
    private readonly what: string,
    [inputs, targets]: readonly [inputs: number, targets: number],
  ) {
    this.store = new TensorStore(backend, 2);
    this.square = this.store.add("x'x", [inputs, inputs], "f32");
    this.cross = this.store.add("x'y", [inputs, targets], "f32");
    this.store.allocate();
  }

  /** Adds x'x and x'y when the graph runs. x: [rows, inputs], y: [rows, targets] */
  add(g: Graph, x: Tensor, y: Tensor): void {
    g.effect(ops.addGram(g, this.square, x));
    g.effect(ops.addProducts(g, this.cross, x, y));
  }

  /** x'x, [inputs, inputs]. @throws CoppiceError when it is not finite */
  get inputs(): Matrix {
    const data = this.read(this.square);
    return symmetric(this.square.shape[0] as number, data);
  }

  /** x'y, [inputs, targets]. @throws CoppiceError when it is not finite */
  get targets(): Matrix {
    const [rows, columns] = this.cross.shape as [number, number];
    return { rows, columns, data: this.read(this.cross) };
  }

  private read(tensor: Tensor): Float32Array {
    const data = this.store.read(tensor);
    checkSums(`the moments of ${this.what}`, data);
    return data;
  }

  free(): void {
    this.store.free();
  }
}
