export {
  type AttentionAttributes,
  attention,
  type Forest,
  type ForestLayout,
  forestInput,
  writeForest,
} from "./attention.js";
export * from "./elementwise.js";
export { type HeadTerm, headIndices, headLoss, mapHeadRows, type RowRange } from "./head.js";
export { argmax, embedding, gather, takeAlongRows, topKIndices } from "./lookup.js";
export { crossEntropy, crossEntropyOfRows, type DivergenceKind, divergence } from "./loss.js";
export { linear, matmul } from "./matmul.js";
export { cast, concatRows, part, permute, reshape, rowsOf } from "./shape.js";
export { addMagnitudes, meanCosine } from "./statistics.js";
export {
  logSoftmax,
  maskedSoftmax,
  type RotaryAttributes,
  rmsNorm,
  rmsNormGain,
  rope,
  silu,
  softmax,
  swiglu,
} from "./transformer.js";
