export { attention } from "./attention.js";
export type { Block } from "./block.js";
export { gatedFeedForward, plainFeedForward } from "./feed-forward.js";
export { layerNorm, rmsNorm } from "./norm.js";
