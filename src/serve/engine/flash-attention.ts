import type { LlamaModel, Token } from "node-llama-cpp";
import { defined } from "./defined.js";

/** Tokens in the cache, then of two prompts: one that flash attention reads token by token, one that it reads at once. */
const [CACHED, SHORT, LONG] = [128, 40, 96];
/** Tokens that the trial computes in a row. */
export const FLASH_TRIAL_TOKENS = CACHED + SHORT + LONG;
/** Larger models take too long to try, and differ little: their time goes into weights. */
const MAX_TRIED_BYTES = 256 << 20;

/**
 * Whether a model is faster with llama.cpp's flash attention on this processor. With it, prompts of up to 63 tokens are read one by
 * one: 40 tokens after 256 took 18 ms with it and 2 ms without in a model of 1 M parameters, 150 ms and 97 ms in one of 100 M; longer
 * ones are read a third faster. Undefined leaves the choice to llama.cpp.
 */
export async function flashAttentionIsFaster(
  model: LlamaModel,
  threads: number | undefined,
): Promise<boolean | undefined> {
  if (model.gpuLayers > 0 || model.size > MAX_TRIED_BYTES) return undefined;
  const vocab = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const text = (count: number) => Array.from({ length: count }, (_, i) => ((7 * i + 3) % vocab) as Token);
  const milliseconds: number[] = [];
  for (const flashAttention of [true, false]) {
    const context = await model.createContext(
      defined({
        threads,
        contextSize: CACHED + SHORT + LONG + 1,
        flashAttention,
      }),
    );
    const sequence = context.getSequence();
    await sequence.evaluateWithoutGeneratingNewTokens(text(CACHED));
    const started = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(text(SHORT));
    await sequence.evaluateWithoutGeneratingNewTokens(text(LONG));
    milliseconds.push(performance.now() - started);
    await context.dispose();
  }
  const [flash = 0, plain = 0] = milliseconds;
  return flash < plain;
}
