import { type Graph, ops, type Tensor } from "../../src/tensor/index.js";

/** xIELU with its two constants, which models store as tensors. */
export function xielu(g: Graph, x: Tensor, alphaPositive: Tensor, alphaNegative: Tensor, beta = 0.5, epsilon = -1e-6) {
  const constant = (value: number) => g.constant(`${value}`, "f32", [1], Float32Array.of(value));
  return ops.xielu(g, x, { alphaPositive, alphaNegative, beta: constant(beta), epsilon: constant(epsilon) });
}
