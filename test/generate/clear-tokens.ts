import type { LlamaModel } from "node-llama-cpp";
import { logProbabilities } from "../llama-cpp.js";

/**
 * How much log-probabilities may change with the number of tokens that llama.cpp computes at once, with threads, kinds of attention and
 * the type of keys and values, on whatever processor.
 */
const NOISE = 0.02;

/**
 * How many of the most probable tokens after a prompt are clearly the most probable ones: all before the first place where another token
 * is as probable to within rounding, after which texts may part.
 */
export async function clearTokens(
  model: LlamaModel,
  prompt: readonly number[],
  tokens: readonly number[],
): Promise<number> {
  const vocab = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const rows = await logProbabilities(model, [...prompt, ...tokens], vocab);
  const isClear = tokens.map((_, i) => {
    const [best = 0, second = 0] = [...(rows[prompt.length - 1 + i] ?? [])].sort((a, b) => b - a);
    return best - second > NOISE;
  });
  const at = isClear.indexOf(false);
  return at < 0 ? tokens.length : at;
}
