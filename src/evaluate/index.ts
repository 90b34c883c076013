export {
  defaultSequenceLength,
  type Perplexity,
  type PerplexityOptions,
  perplexity,
  targetIndices,
  tokenLosses,
} from "./perplexity.js";
