export { type Chat, Engine, type EngineOptions, type Generation, type SamplingOptions } from "./engine.js";
export { checkRunnable } from "./runnable.js";
