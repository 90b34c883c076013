import { Backend } from "../../../src/ggml/index.js";
import type { Random } from "../../../src/system/random.js";
import { elementCount, Graph, type GraphOptions, type Shape, type Tensor } from "../../../src/tensor/index.js";
import { testBackends } from "../../devices.js";

/** Numbers and their shape. */
export interface Values {
  readonly shape: Shape;
  readonly data: Float32Array;
}

/** Drawn from a normal distribution. */
export function normal(random: Random, shape: Shape, deviation = 1): Values {
  return { shape, data: Float32Array.from({ length: elementCount(shape) }, () => deviation * random.normal()) };
}

/** Computes tensors from inputs, once; `before` is called first, to write further inputs. */
export type Compute = (
  inputs: readonly Values[],
  apply: (g: Graph, inputs: readonly Tensor[]) => readonly Tensor[],
  options?: GraphOptions & { readonly before?: (g: Graph) => void },
) => Promise<Float32Array[]>;

/** The name of every backend, and a function to compute on it. Call `free` after all computations. */
export function backends(): {
  readonly each: readonly (readonly [string, Compute])[];
  readonly free: () => void;
} {
  const opened: Backend[] = [];
  const graphs: Graph[] = [];
  const each = testBackends.map(([name, options]) => {
    const backend = Backend.open({ ...options, threads: 2 });
    opened.push(backend);
    const compute: Compute = async (inputs, apply, { before, ...graphOptions } = {}) => {
      const g = new Graph(backend, graphOptions);
      graphs.push(g);
      const tensors = inputs.map(({ shape, data }, i) => g.constant(`x${i}`, "f32", shape, data));
      const results = apply(g, tensors).map((tensor) => g.output(tensor));
      before?.(g);
      await g.run();
      return results.map((tensor) => g.read(tensor));
    };
    return [name, compute] as const;
  });
  const free = () => {
    for (const g of graphs) g.free();
    for (const backend of opened) backend.free();
  };
  return { each, free };
}

/** The largest difference from the expected numbers, not counting `relative` times the number itself. */
export function furthest(actual: Float32Array, expected: readonly number[] | Float64Array, relative = 0): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let most = 0;
  for (const [i, value] of actual.entries()) {
    const difference = Math.abs(value - (expected[i] ?? Number.NaN)) - relative * Math.abs(expected[i] ?? Number.NaN);
    if (Number.isNaN(difference)) return Number.POSITIVE_INFINITY;
    most = Math.max(most, difference);
  }
  return most;
}
