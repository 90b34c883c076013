export { attention } from "./attention.js";
export * from "./elementwise.js";
export { embedding, gather, takeAlongRows, topKIndices } from "./lookup.js";
export { softCrossEntropy } from "./loss.js";
export { linear, matmul } from "./matmul.js";
export { cast, permute, reshape } from "./shape.js";
export {
  logSoftmax,
  maskedSoftmax,
  type RotaryAttributes,
  rmsNorm,
  rope,
  silu,
  softmax,
  swiglu,
} from "./transformer.js";
