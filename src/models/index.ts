export type { Architecture, ConfigJson, ForwardOptions, ForwardResult, Model, Tap, Weights } from "./architecture.js";
export {
  type Axis,
  axisSize,
  countParameters,
  type DimensionName,
  factorsOf,
  layerDimension,
  type ParameterSpec,
  type Sizes,
  shapeOf,
  splitLayer,
} from "./dimensions.js";
export { forwardFlopsPerToken } from "./flops.js";
export type { GgufLayout } from "./gguf-layout.js";
export { configFromGguf, knownModelTypes, modelFromConfig } from "./registry.js";
export { initialise, type LoadOptions, loadWeights, ModelWeights } from "./weights.js";
