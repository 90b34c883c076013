export type { BatchOptions, CalibrationOptions } from "./batches.js";
export { DivergenceMeter, type DivergenceOf } from "./divergence.js";
export {
  defaultSequenceLength,
  type Perplexity,
  type PerplexityOptions,
  perplexity,
} from "./perplexity.js";
