export {
  type Chat,
  checkSameTokens,
  Engine,
  type EngineOptions,
  fastestThreads,
  type Generation,
  loadModel,
  type SamplingOptions,
} from "./engine.js";
export { LlamaCppModel, type LlamaCppOptions } from "./llama-cpp-model.js";
export { checkContext, checkRunnable, type Runnable } from "./runnable.js";
