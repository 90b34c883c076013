export {
  type Chat,
  type CompletionOptions,
  checkSameTokens,
  Engine,
  type EngineOptions,
  fastestThreads,
  type GeneratedText,
  loadModel,
  type SamplingOptions,
} from "./engine.js";
export { LlamaCppModel, type LlamaCppOptions } from "./llama-cpp-model.js";
export { promptTokens, type SpecialTokens } from "./prompt.js";
export { checkContext, checkRunnable, describeRunnable, openRunnable, type Runnable } from "./runnable.js";
export { tokenize } from "./tokenize.js";
