import type { Tensor } from "./tensor.js";

/**
 * Computes the gradient of one input; called only when it is needed. `null` for inputs without a gradient. In the second form
 * the result is in memory that nothing else reads, so that further terms may be added in place; `addTo` adds this term to such
 * a sum.
 */
export type Gradient =
  | (() => Tensor)
  | { readonly value: () => Tensor; readonly addTo?: ((sum: Tensor) => Tensor) | undefined }
  | null;

/** Computes something the first time it is needed: a node that the gradients of several inputs share. */
export function once<T>(compute: () => T): () => T {
  let result: { readonly value: T } | undefined;
  return () => {
    result ??= { value: compute() };
    return result.value;
  };
}
