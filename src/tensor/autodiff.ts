import { ShapeError } from "../system/errors.js";
import type { Gradient } from "./gradient.js";
import type { Graph, TapeEntry } from "./graph.js";
import { add, mul } from "./ops/elementwise.js";
import { describe, elementCount, type Tensor } from "./tensor.js";

/** Gradients so far, by the tensor they belong to. */
export class GradientSums {
  private readonly sums = new Map<Tensor, Tensor>();
  /** Sums in memory of their own, which may be added to in place. */
  private readonly owned = new Set<Tensor>();

  get(tensor: Tensor): Tensor | undefined {
    return this.sums.get(tensor);
  }

  /** Takes a gradient out, for good. */
  take(tensor: Tensor): Tensor | undefined {
    const found = this.sums.get(tensor);
    this.sums.delete(tensor);
    return found;
  }

  set(tensor: Tensor, gradient: Tensor): void {
    this.sums.set(tensor, gradient);
  }

  /** Adds a term, in place where that is safe. */
  add(g: Graph, tensor: Tensor, gradient: NonNullable<Gradient>): void {
    const before = this.sums.get(tensor);
    const form = typeof gradient === "function" ? { value: gradient } : gradient;
    let sum: Tensor;
    if (before !== undefined && this.owned.has(before) && "addTo" in form && form.addTo !== undefined)
      sum = form.addTo(before);
    else {
      const term = form.value();
      sum = before === undefined ? term : add(g, before, term);
      if (before === undefined && typeof gradient === "function") {
        this.sums.set(tensor, sum);
        return; // the term may be another's too
      }
    }
    this.owned.add(sum);
    this.sums.set(tensor, sum);
  }
}

/**
 * Walks a tape backwards, adding up vector-Jacobian products. `sums` starts with the gradients of what the tape computed and
 * ends with those of what it was computed from.
 */
export function backpropagate(g: Graph, tape: readonly TapeEntry[], sums: GradientSums): void {
  g.withoutGradient(() => {
    for (const entry of tape.toReversed()) {
      const dys = entry.outputs.map((output) => sums.take(output));
      if (dys.every((dy) => dy === undefined)) continue;
      const products = entry.vjp(dys);
      entry.inputs.forEach((input, i) => {
        const product = products[i];
        if (input.requiresGrad && product !== null && product !== undefined) sums.add(g, input, product);
      });
    }
  });
}

/** What a tape computes from: inputs that need a gradient and are not computed on it. */
export function leavesOf(tape: readonly TapeEntry[]): Tensor[] {
  const computed = new Set(tape.flatMap(({ outputs }) => outputs));
  const inputs = tape.flatMap((entry) => entry.inputs.filter((input) => input.requiresGrad && !computed.has(input)));
  return [...new Set(inputs)];
}

/**
 * Reverse-mode differentiation of a scalar with respect to tensors.
 * @param loss one element, f32
 * @returns a gradient for each of `targets`, in their order and shapes
 * @throws ShapeError when the loss is no scalar or does not depend on a target
 */
export function gradients(g: Graph, loss: Tensor, targets: readonly Tensor[]): Tensor[] {
  if (elementCount(loss.shape) !== 1) throw new ShapeError(`${describe(loss)} is no scalar to differentiate`);
  const sums = new GradientSums();
  sums.set(loss, g.one);
  backpropagate(g, g.tape, sums);
  return targets.map((target) => {
    const gradient = sums.get(target);
    if (gradient === undefined) throw new ShapeError(`${describe(loss)} does not depend on ${describe(target)}`);
    return gradient;
  });
}

/** A gradient that was computed for a loss, carried on to what the loss's own gradient dy, [1], says. */
export const chained = (g: Graph, gradient: Tensor, dy: Tensor): Tensor =>
  dy.handle === g.one.handle ? gradient : mul(g, gradient, dy);

/**
 * Computes y = f(x) and, where the graph is to save memory, forgets what happened in between: the gradient computes it again
 * (Chen et al. 2016, section 3). `f` is called once more then, so it must give the same.
 */
export function recomputed(g: Graph, x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  if (!g.recompute || !g.isRecording) return f(x);
  const { value, tape } = g.taped(() => f(x));
  const leaves = leavesOf(tape);
  const output = { ...value };
  g.record({
    output,
    inputs: leaves,
    vjp: (dy) => {
      const again = g.taped(() => f(x));
      const sums = new GradientSums();
      sums.set(again.value, dy);
      backpropagate(g, again.tape, sums);
      return leaves.map((leaf): Gradient => {
        const gradient = sums.get(leaf);
        return gradient === undefined ? null : () => gradient;
      });
    },
  });
  return output;
}
