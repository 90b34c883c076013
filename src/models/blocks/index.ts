export { type AttentionOptions, attention, type QueryKeyNorms } from "./attention.js";
export type { Block, ContextCost, Dimension, GgufPlacement, Parameter, Scope, Score } from "./block.js";
export { type GatedOptions, gatedFeedForward, type PlainOptions, plainFeedForward } from "./feed-forward.js";
export { layerNorm, type NormOptions, rmsNorm } from "./norm.js";
