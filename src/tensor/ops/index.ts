export {
  type GeluApproximation,
  geglu,
  gelu,
  relu,
  sigmoid,
  silu,
  softCap,
  softplus,
  swiglu,
  tanh,
  type XieluParameters,
  xielu,
} from "./activations.js";
export { attention } from "./attention.js";
export { type AttentionAttributes, composedAttention } from "./composed-attention.js";
export * from "./elementwise.js";
export { type Forest, type ForestLayout, forestInput, writeForest } from "./forest.js";
export { type HeadTerm, headIndices, headLoss, mapHeadRows, type RowRange, rowRanges } from "./head.js";
export { argmax, embedding, gather, takeAlongRows, topKIndices } from "./lookup.js";
export {
  crossEntropy,
  crossEntropyOfRows,
  type DivergenceAttributes,
  type DivergenceKind,
  divergence,
} from "./loss.js";
export { addGram, addProducts, type LinearAttributes, linear, matmul } from "./matmul.js";
export { type PositionFactors, type RotaryAttributes, rope, scaleByPosition } from "./rotary.js";
export { cast, concatLast, concatRows, firstColumns, part, permute, reshape, rowsOf, splitLast } from "./shape.js";
export { addMagnitudes, meanCosine } from "./statistics.js";
export { layerNorm, logSoftmax, maskedSoftmax, rmsNorm, rmsNormGain, softmax } from "./transformer.js";
