export type {
  Activation,
  Architecture,
  ForwardOptions,
  ForwardResult,
  GgufReader,
  Layout,
  Model,
  PruningAxis,
  ResidualStep,
  RmsNorm,
  SizeField,
  SizeFields,
  Stream,
  Surroundings,
  Tap,
  Weights,
} from "./architecture.js";
export {
  type AttentionOptions,
  attention,
  type Block,
  type ContextCost,
  type Dimension,
  type GatedOptions,
  type GgufPlacement,
  gatedFeedForward,
  layerNorm,
  type NormOptions,
  type Parameter,
  type PlainOptions,
  plainFeedForward,
  type QueryKeyNorms,
  rmsNorm,
  type Scope,
  type Score,
} from "./blocks/index.js";
export type { Checkpoint, ModelTensors } from "./checkpoint.js";
export { type ConfigJson, choice, flag, positive, size } from "./config.js";
export {
  activeWeights,
  CACHE_ELEMENT_BYTES,
  cacheBytes,
  forwardFlopsPerToken,
  hasWindowsInLlamaCpp,
  largestSize,
  sizesOfAxis,
} from "./cost.js";
export {
  type Axis,
  axisSize,
  countParameters,
  type DimensionName,
  describeAxis,
  dimensionsOf,
  type Initialization,
  type LayerDimension,
  layerDimension,
  type ParameterSpec,
  type Sizes,
  shapeOf,
  sizeOf,
} from "./dimensions.js";
export {
  architecture,
  BASE_SIZES,
  baseSchema,
  type Family,
  type HeadFields,
  type Heads,
  headsOf,
  type RotaryFields,
  rotaryOf,
  wholeRotaryOf,
} from "./family.js";
export type { GgufConfig } from "./gguf-config.js";
export type { DerivedTensor, GgufFacts, GgufLayout, GgufParameter, ListedValues } from "./gguf-layout.js";
export { type GgufSummary, summarizeGguf } from "./gguf-summary.js";
export {
  type BaseDecoder,
  type DecoderFields,
  type LayerBlocks,
  type LayerNames,
  type Norm,
  postNormDecoder,
  preNormDecoder,
  rmsNorms,
  sandwichDecoder,
} from "./layers.js";
export {
  type GgufModel,
  openCheckpoint,
  openGgufModel,
  storedSource,
  writeModel,
} from "./open.js";
export { placesOf } from "./placement.js";
export {
  ARCHITECTURES,
  configFromGguf,
  knownGgufArchitectures,
  knownModelTypes,
  modelFromConfig,
  registerArchitecture,
} from "./registry.js";
export type { RotaryConfig } from "./rotary.js";
export type { DecoderNames, DecoderSpec, Layer, NamedBlock, Residual } from "./spec.js";
export {
  openWeights,
  type PassWeights,
  type PassWeightsOptions,
  STATES_SHARE,
  StreamedWeights,
  streamedIfLarge,
  streamedWeights,
  wholeWeights,
} from "./streamed-weights.js";
export {
  blankWeights,
  bytesOnDevice,
  initialize,
  type LoadOptions,
  loadWeights,
  type MatrixTypes,
  ModelWeights,
  reservedWeights,
  typesOn,
} from "./weights.js";
