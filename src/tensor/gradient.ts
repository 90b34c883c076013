import type { Tensor } from "./tensor.js";

/**
 * How to compute the gradient for one input; called only where one is wanted. In the second form the result is in memory
 * that nothing else reads, so that further terms may be added to it in place, and `addTo`, where there is one, adds this
 * term to such a sum.
 */
export type Gradient =
  | (() => Tensor)
  | { readonly value: () => Tensor; readonly addTo?: ((sum: Tensor) => Tensor) | undefined }
  | null;
