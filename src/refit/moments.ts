import type { Backend } from "../ggml/device.js";
import type { Matrix } from "../linear-algebra/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/** Sums of products of activations over calibration data, on the device. */
export class Moments {
  private readonly store: TensorStore;
  private readonly square: Tensor;
  private readonly cross: Tensor;

  /** @param inputs values of a row of x @param targets of y */
  constructor(backend: Backend, inputs: number, targets: number) {
    this.store = new TensorStore(backend, 2);
    this.square = this.store.add("x'x", [inputs, inputs], "f32");
    this.cross = this.store.add("x'y", [inputs, targets], "f32");
    this.store.allocate();
  }

  /** Adds x'x and x'y when the graph runs. x: [rows, inputs], y: [rows, targets] */
  add(g: Graph, x: Tensor, y: Tensor): void {
    g.effect(ops.addProducts(g, this.square, x, x));
    g.effect(ops.addProducts(g, this.cross, x, y));
  }

  /** x'x, [inputs, inputs]. */
  get inputs(): Matrix {
    return this.read(this.square);
  }

  /** x'y, [inputs, targets]. */
  get targets(): Matrix {
    return this.read(this.cross);
  }

  private read(tensor: Tensor): Matrix {
    const [rows, columns] = tensor.shape as [number, number];
    return { rows, columns, data: this.store.read(tensor) };
  }

  free(): void {
    this.store.free();
  }
}
