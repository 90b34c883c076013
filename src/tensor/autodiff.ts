import { ShapeError } from "../system/errors.js";
import type { Gradient } from "./gradient.js";
import type { Graph, TapeEntry } from "./graph.js";
import { add, mul } from "./ops/elementwise.js";
import { describe, elementCount, type Tensor } from "./tensor.js";

/** The gradients summed so far, by tensor. */
export class GradientSums {
  private readonly sums = new Map<Tensor, Tensor>();
  /** Sums in memory that nothing else reads, which may be added to in place. */
  private readonly owned = new Set<Tensor>();

  get(tensor: Tensor): Tensor | undefined {
    return this.sums.get(tensor);
  }

  /** Removes and returns a gradient. */
  take(tensor: Tensor): Tensor | undefined {
    const gradient = this.sums.get(tensor);
    this.sums.delete(tensor);
    return gradient;
  }

  set(tensor: Tensor, gradient: Tensor): void {
    this.sums.set(tensor, gradient);
  }

  /** Those that have a gradient. */
  get tensors(): Iterable<Tensor> {
    return this.sums.keys();
  }

  /** Adds a term, in place where possible. */
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
        return; // the term may also be another tensor's gradient, so it is not owned
      }
    }
    this.owned.add(sum);
    this.sums.set(tensor, sum);
  }
}

/**
 * Walks a tape backwards, adding up vector-Jacobian products. `sums` starts with the gradients of the tape's outputs and ends
 * with those of its leaves.
 * @param afterEntry called after each entry, the last one first
 */
export function backpropagate(
  g: Graph,
  tape: readonly TapeEntry[],
  sums: GradientSums,
  afterEntry?: (entry: TapeEntry) => void,
): void {
  g.withoutGradient(() => {
    for (const entry of tape.toReversed()) {
      const dys = entry.outputs.map((output) => sums.take(output));
      if (dys.some((dy) => dy !== undefined)) {
        const products = entry.vjp(dys);
        entry.inputs.forEach((input, i) => {
          const product = products[i];
          if (input.requiresGrad && product !== null && product !== undefined) sums.add(g, input, product);
        });
      }
      afterEntry?.(entry);
    }
  });
}

/** A tape's leaves: inputs that need a gradient and are not computed on the tape. */
export function leavesOf(tape: readonly TapeEntry[]): Tensor[] {
  const computed = new Set(tape.flatMap(({ outputs }) => outputs));
  const leaves = tape.flatMap((entry) => entry.inputs.filter((input) => input.requiresGrad && !computed.has(input)));
  return [...new Set(leaves)];
}

/** The entry that comes last when a tape is walked backwards, for each of the tensors that the tape reads. */
function firstReaders(tape: readonly TapeEntry[], tensors: readonly Tensor[]): Map<TapeEntry, Tensor[]> {
  const wanted = new Set(tensors);
  const readers = new Map<TapeEntry, Tensor[]>();
  for (const entry of tape)
    for (const input of entry.inputs)
      if (wanted.delete(input)) readers.set(entry, [...(readers.get(entry) ?? []), input]);
  return readers;
}

/**
 * Reverse-mode differentiation of a scalar with respect to tensors.
 * @param loss one element, f32
 * @param onFinal called with each target as soon as its gradient is complete, while others are still to be computed
 * @returns a gradient for each of `targets`, in their order and shapes
 * @throws ShapeError when the loss is not a scalar or does not depend on a target, or reads what lies within a recomputed part
 */
export function gradients(
  g: Graph,
  loss: Tensor,
  targets: readonly Tensor[],
  onFinal?: (target: Tensor, gradient: Tensor) => void,
): Tensor[] {
  if (elementCount(loss.shape) !== 1)
    throw new ShapeError(`${describe(loss)} is not a scalar, so it cannot be differentiated`);
  const sums = new GradientSums();
  sums.set(loss, g.one);
  const gradientOf = (target: Tensor): Tensor => {
    const gradient = sums.get(target);
    if (gradient === undefined) throw new ShapeError(`${describe(loss)} does not depend on ${describe(target)}`);
    return gradient;
  };
  const readers = firstReaders(g.tape, onFinal === undefined ? [] : targets);
  backpropagate(g, g.tape, sums, (entry) => {
    for (const target of readers.get(entry) ?? []) onFinal?.(target, gradientOf(target));
  });
  checkAllUsed(g, sums);
  return targets.map(gradientOf);
}

/** @throws ShapeError for an intermediate result whose gradient goes nowhere, because its step is on no tape any more */
function checkAllUsed(g: Graph, sums: GradientSums): void {
  for (const tensor of sums.tensors)
    if (tensor.requiresGrad && g.isResult(tensor))
      throw new ShapeError(
        `the loss reads ${describe(tensor)}, which is within what is computed again for gradients: read the output of a layer, or do without --recompute`,
      );
}

/** Applies the chain rule to a gradient of a loss: multiplies it by the loss's own gradient dy, [1]. */
export const chained = (g: Graph, gradient: Tensor, dy: Tensor): Tensor =>
  dy.handle === g.one.handle ? gradient : mul(g, gradient, dy);

/**
 * Computes y = f(x) and, in graphs that recompute, does not keep intermediate results: the gradient computes them again (Chen et
 * al. 2016, section 3). `f` is called a second time for that, so it must build the same computation.
 */
export function recomputed(g: Graph, x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  if (!g.recompute || !g.isRecording) return f(x);
  const { value, tape } = g.taped(() => f(x));
  if (tape.length === 0) return value; // nothing is computed
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
