import { ShapeError } from "../system/errors.js";
import type { Graph } from "./graph.js";
import { add } from "./ops/elementwise.js";
import { describe, elementCount, type Tensor } from "./tensor.js";

/**
 * Reverse-mode differentiation of a scalar with respect to tensors, by walking the tape backwards and adding up
 * vector-Jacobian products.
 * @param loss one element, f32
 * @returns a gradient for each of `targets`, in their order and shapes
 * @throws ShapeError when the loss is no scalar or does not depend on a target
 */
export function gradients(g: Graph, loss: Tensor, targets: readonly Tensor[]): Tensor[] {
  if (elementCount(loss.shape) !== 1) throw new ShapeError(`${describe(loss)} is no scalar to differentiate`);
  const gradientOf = new Map<Tensor, Tensor>();
  gradientOf.set(loss, g.constant("gradient of the loss", "f32", loss.shape, Float32Array.of(1)));
  g.withoutGradient(() => {
    for (let i = g.tape.length - 1; i >= 0; i--) {
      const entry = g.tape[i];
      if (entry === undefined) continue;
      const dy = gradientOf.get(entry.output);
      if (dy === undefined) continue;
      const products = entry.vjp(dy);
      entry.inputs.forEach((input, index) => {
        const product = products[index];
        if (!input.requiresGrad || product === null || product === undefined) return;
        const before = gradientOf.get(input);
        const term = product();
        gradientOf.set(input, before === undefined ? term : add(g, before, term));
      });
    }
  });
  return targets.map((target) => {
    const gradient = gradientOf.get(target);
    if (gradient === undefined) throw new ShapeError(`${describe(loss)} does not depend on ${describe(target)}`);
    return gradient;
  });
}
