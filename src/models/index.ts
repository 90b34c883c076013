export type {
  Activation,
  Architecture,
  ForwardOptions,
  ForwardResult,
  Model,
  PruningAxis,
  Tap,
  Weights,
} from "./architecture.js";
export { attention, type Block, gatedFeedForward, layerNorm, plainFeedForward, rmsNorm } from "./blocks/index.js";
export type { Checkpoint, ModelTensors } from "./checkpoint.js";
export { type ConfigJson, choice, flag, positive, size } from "./config.js";
export { activeWeights, cacheBytes, forwardFlopsPerToken, largestSize, sizesOfAxis } from "./cost.js";
export {
  type Axis,
  axisSize,
  countParameters,
  type DimensionName,
  describeAxis,
  dimensionsOf,
  type LayerDimension,
  layerDimension,
  type ParameterSpec,
  type Sizes,
  shapeOf,
  sizeOf,
} from "./dimensions.js";
export { architecture, BASE_SIZES, baseSchema, headsOf, rotaryOf, wholeRotaryOf } from "./family.js";
export type { GgufLayout, GgufParameter } from "./gguf-layout.js";
export { type GgufSummary, summarizeGguf } from "./gguf-summary.js";
export { postNormDecoder, preNormDecoder, rmsNorms, sandwichDecoder } from "./layers.js";
export {
  type GgufModel,
  openCheckpoint,
  openGgufModel,
  storedSource,
  writeModel,
} from "./open.js";
export {
  ARCHITECTURES,
  configFromGguf,
  knownGgufArchitectures,
  knownModelTypes,
  modelFromConfig,
  registerArchitecture,
} from "./registry.js";
export { initialize, type LoadOptions, loadWeights, ModelWeights } from "./weights.js";
