export {
  defaultSequenceLength,
  type Perplexity,
  type PerplexityOptions,
  perplexity,
} from "./perplexity.js";
