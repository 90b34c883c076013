import type { LlamaModel, Token } from "node-llama-cpp";

/** Tokens that are there, and then two prompts: one that flash attention reads token by token, one that it reads at once. */
const [PAST, SHORT, LONG] = [128, 40, 96];
/** Tokens that trying computes in a row. */
export const FLASH_TRIAL_TOKENS = PAST + SHORT + LONG;
/** Trying takes too long for larger models, and says little: their time goes into weights. */
const TRIED_BYTES = 256 << 20;

/**
 * Whether a model on this processor is faster with llama.cpp's flash attention. There, up to 63 tokens are read one by one: 40 after
 * 256 took 18 ms with it and 2 ms without in a model of 1 M parameters, 150 ms and 97 ms in one of 100 M; more tokens are read a
 * third faster with it. Undefined leaves the choice to llama.cpp.
 */
export async function flashAttentionIsFaster(
  model: LlamaModel,
  threads: number | undefined,
): Promise<boolean | undefined> {
  if (model.gpuLayers > 0 || model.size > TRIED_BYTES) return undefined;
  const vocab = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const text = (count: number) => Array.from({ length: count }, (_, i) => ((7 * i + 3) % vocab) as Token);
  const seconds: number[] = [];
  for (const flashAttention of [true, false]) {
    const context = await model.createContext({
      contextSize: PAST + SHORT + LONG + 1,
      flashAttention,
      ...(threads !== undefined && { threads }),
    });
    const sequence = context.getSequence();
    await sequence.evaluateWithoutGeneratingNewTokens(text(PAST));
    const began = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(text(SHORT));
    await sequence.evaluateWithoutGeneratingNewTokens(text(LONG));
    seconds.push(performance.now() - began);
    await context.dispose();
  }
  const [withIt = 0, without = 0] = seconds;
  return withIt < without;
}
